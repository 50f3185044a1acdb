"""Diversity: how far apart two samples of one prompt, or of one class, are on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# images (B, *) and as many others -> distances (B,)
Distance = Callable[[Tensor, Tensor], Tensor]


def mean_over_pairs(distance: Distance, images: Tensor, batch_size: int = 64) -> Tensor:
    """Mean distance over the K (K - 1) / 2 pairs of images (K, *), in float64; NaN for one image.

    With LPIPS, the diversity at one prompt, as StarGAN v2 (Choi et al. 2020) takes it of the images
    of one input; its mean over prompts is the number that tables hold.
    """
    first, second = torch.triu_indices(len(images), len(images), offset=1)
    distances = [
        distance(images[i], images[j]).double().cpu()
        for i, j in zip(first.split(batch_size), second.split(batch_size), strict=True)
    ]
    return torch.cat(distances).mean()


def diversity(distance: Distance, groups: Iterable[Tensor], batch_size: int = 64) -> Tensor:
    """:func:`mean_over_pairs` of each group of images (K, *), (P,): one a prompt, so that its mean
    has a standard error."""
    return torch.stack([mean_over_pairs(distance, images, batch_size) for images in groups])


def pairwise_distance(features: Tensor, groups: Iterable[Tensor | slice]) -> Tensor:
    """Mean Euclidean distance of two different rows of one group, (P,), in float64.

    Of features (N, D), of which ``groups`` picks P times some rows, by index or mask; NaN for a
    group of fewer than two.
    """
    return torch.stack([torch.pdist(features[rows].double()).mean() for rows in groups])
