"""Human Preference Score v2.1 (Wu et al. 2023): a fine-tuned open_clip ViT-H-14's cosine.

The published code (tgxs002/HPSv2) prepares images in a way of its own: in [0, 1] as floats first,
then the longer side to 224 by torchvision's bicubic filter, then black around the rest; torchvision
has antialiased there since 0.17. Its tables are this score times 100, in half precision on a GPU;
ours is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, pad, resize, to_tensor

from ...assets import Asset, find
from ..extractors.pixels import CLIP
from ..features import Pixels, Scorer, digest
from .open_clip_score import load_open_clip

WEIGHTS = Asset(
    "weights of HPSv2.1",
    "HPS_v2.1_compressed.pt",
    "STEPDISTILL_HPSV2",
    "xswu/HPSv2",
    "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",  # its upload, 697403c7
    option="--weights hpsv2=FILE",
)


def fitted(pixels: Pixels, side: int) -> Tensor:
    """(3, side, side) in [0, 1]: the longer side at ``side``, black around the shorter."""
    image = to_tensor(pixels)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale != 1:
        size = [round(height * scale), round(width * scale)]
        image = resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    down, across = side - image.shape[1], side - image.shape[2]
    framed: Tensor = pad(image, [across // 2, down // 2, across - across // 2, down - down // 2])
    return framed


def hps_score(architecture: str, file: Path, device: torch.device | str = "cpu") -> Scorer:
    """Cosine of the image and its prompt."""
    clip = load_open_clip(architecture, file, device)
    side = clip.network.visual.image_size[0]

    @torch.no_grad()
    def network(inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        image = clip.network.encode_image(inputs.to(device))
        text = clip.network.encode_text(clip.tokenize(list(prompts)).to(device))
        return F.cosine_similarity(image, text, dim=1)

    words = "longer side 224 bicubic antialiased (torchvision), black around"
    return Scorer("hpsv2", digest(file), partial(_prepare, side=side), network, resize=words)


def hpsv2(weights: str | None = None, device: torch.device | str = "cpu") -> Scorer:
    """The published v2.1. UserError if the weights are not there, or are others."""
    return hps_score("ViT-H-14", find(WEIGHTS, weights), device)


def _prepare(pixels: Pixels, side: int) -> Tensor:
    image: Tensor = normalize(fitted(pixels, side), *CLIP)
    return image
