"""DINOv2 ViT-L/14, of which FD-DINOv2 is the Frechet distance (Stein et al. 2023, "Exposing flaws
of generative model evaluation metrics and their unfair treatment of diffusion models").

As their code, dgm-eval, has it: PIL's bicubic resize to 224x224 (antialiased, rounded to 8 bits,
the aspect ratio not kept), ImageNet's means and deviations, the class token after the last norm.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...assets import Asset, find_repo
from ..features import Features, Pixels
from .pixels import IMAGENET, bicubic, colour, normalised
from .pretrained import load_pretrained, weights_digest

SIDE = 224
DINOV2 = Asset(
    name="DINOv2 weights",
    file="model.safetensors",
    variable="STEPDISTILL_DINOV2",
    source="facebook/dinov2-large",
    # huggingface.co/facebook/dinov2-large/blob/main/model.safetensors
    sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    option="--weights dinov2=FOLDER",
)


def published_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + N, D) of a square grid for one of ``side``, (1, 1 + side^2, D).

    As DINOv2's own code resamples them: bicubic, row i at (i + 1/2) g / (side + 0.1) - 1/2 of the
    old grid of g rows. transformers divides by ``side`` instead, which moves the features.
    """
    first, patches = positions[:, :1], positions[:, 1:]
    grid = round(patches.shape[1] ** 0.5)
    if grid == side:
        return positions
    scale = (side + 0.1) / grid
    square = patches.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    resampled = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, resampled.flatten(2).transpose(1, 2)], dim=1)


def dinov2_features(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """8-bit images of any size -> (B, 1024), from a folder or a hub id of a ``Dinov2Model``."""
    from transformers import Dinov2Model

    folder = find_repo(DINOV2, weights)
    network = load_pretrained(Dinov2Model, folder, device)
    embeddings, side = network.embeddings, SIDE // network.config.patch_size
    embeddings.position_embeddings = nn.Parameter(
        published_positions(embeddings.position_embeddings.data, side), requires_grad=False
    )

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        out: Tensor = network(images.to(device, non_blocking=True)).pooler_output
        return out

    return Features(
        "dinov2",
        network.config.hidden_size,
        weights_digest(folder),
        "RGB",
        _prepare,
        features,
        resize="to 224x224, PIL's antialiased bicubic, 8 bits (dgm-eval)",
    )


def _prepare(pixels: Pixels) -> Tensor:
    return normalised(bicubic(colour(pixels), SIDE), IMAGENET)
