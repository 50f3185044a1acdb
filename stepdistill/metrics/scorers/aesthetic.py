"""LAION's aesthetic score, 1 to 10: a linear head over OpenAI's ViT-L/14 (Schuhmann 2022).

As christophschuhmann/improved-aesthetic-predictor scores with the head that it calls
``sac+logos+ava1-l14-linearMSE``: five linear layers (without a nonlinearity between them) of the
image's embedding divided by its norm. Published scores were taken in half precision on a GPU; ours
are float32. The prompt plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from ...assets import Asset, check, find_repo, locate
from ..extractors.pixels import CLIP, normalised
from ..features import Pixels, Scorer, digest
from .checkpoints import fill, read_weights
from .torchmetrics_clip_score import FOLDER
from .transformers_clip import RESIZE, load_clip

HEAD = Asset(
    "weights of the aesthetic head",
    "sac+logos+ava1-l14-linearMSE.pth",
    "STEPDISTILL_AESTHETIC",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    option="--weights aesthetic=FILE",
)


class Head(nn.Module):
    """Embeddings (B, size) of norm 1 -> scores (B,). Dropout holds the places of the layers' names,
    and does nothing when scoring."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B,)."""
        scores: Tensor = self.layers(embeddings)[:, 0]
        return scores


def aesthetic_score(file: Path, folder: str, device: torch.device | str = "cpu") -> Scorer:
    """With the head of ``file`` and the CLIP of ``folder``, whose embeddings the head must fit."""
    clip = load_clip(folder, device)
    head = Head(clip.model.config.projection_dim)
    fill(head, read_weights(file), file)
    head = head.to(device).eval().requires_grad_(False)
    side = clip.model.config.vision_config.image_size

    @torch.no_grad()
    def network(inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = head(F.normalize(clip.image_embeddings(inputs), dim=-1))
        return scores

    both = f"{digest(file)} over {clip.sha256}"
    return Scorer("aesthetic", both, partial(_prepare, side=side), network, resize=RESIZE)


def aesthetic(
    weights: str | None = None, clip: str | None = None, device: torch.device | str = "cpu"
) -> Scorer:
    """The published head (``weights``) over OpenAI's network, whose folder (``clip``) is that of
    :func:`clip_torchmetrics`. UserError if either is not there, or is another."""
    file = locate(HEAD, weights)
    assert file is not None  # it does not lie on the hub
    check(HEAD, file)
    return aesthetic_score(file, find_repo(FOLDER, clip), device)


def _prepare(pixels: Pixels, side: int) -> Tensor:
    """As OpenAI's own code: not the folder's, whose middle may lie a pixel beside."""
    resized = resize(Image.fromarray(pixels), side, InterpolationMode.BICUBIC)
    return normalised(np.asarray(center_crop(resized, side)), CLIP)
