"""CLIP ViT-L/14@336's image embeddings, of which CMMD is the squared maximum mean discrepancy
(Jayasumana et al. 2024, "Rethinking FID: towards a better evaluation metric for image generation").

As their code has it: the square in the middle, PIL's bicubic resize to 336x336 (antialiased,
rounded to 8 bits), CLIP's means and deviations, the projected embedding at unit length.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...assets import Asset, find_repo
from ..features import Features, Pixels
from .pixels import CLIP, bicubic, centre_square, colour, normalised
from .pretrained import load_pretrained, weights_digest

CLIP_336 = Asset(
    name="CLIP ViT-L/14@336 weights",
    file="pytorch_model.bin",
    variable="STEPDISTILL_CLIP_336",
    source="openai/clip-vit-large-patch14-336",
    # huggingface.co/openai/clip-vit-large-patch14-336/blob/main/pytorch_model.bin
    sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    option="--weights clip-336=FOLDER",
)


def clip_336_features(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """8-bit images of any size -> (B, 768) of length one, from a folder or a hub id of a CLIP."""
    from transformers import CLIPVisionModelWithProjection

    folder = find_repo(CLIP_336, weights)
    network = load_pretrained(CLIPVisionModelWithProjection, folder, device)
    side = network.config.image_size

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        embedded: Tensor = network(images.to(device, non_blocking=True)).image_embeds
        return functional.normalize(embedded, dim=-1)

    return Features(
        "clip-336",
        network.config.projection_dim,
        weights_digest(folder),
        "RGB",
        partial(_prepare, side=side),
        features,
        resize=f"middle square to {side}x{side}, PIL's antialiased bicubic, 8 bits (CMMD)",
    )


def _prepare(pixels: Pixels, side: int) -> Tensor:
    return normalised(bicubic(centre_square(colour(pixels)), side), CLIP)
