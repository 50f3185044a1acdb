"""Scores of single images and their prompts.

A scorer is listed once its published code has been run beside ours in a test, on a tiny random
network, with equal scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..features import Scorer
from .aesthetic import aesthetic as aesthetic
from .hpsv2 import hpsv2 as hpsv2
from .open_clip_score import clip_vit_g_14 as clip_vit_g_14
from .pickscore import pickscore as pickscore
from .torchmetrics_clip_score import clip_torchmetrics as clip_torchmetrics


@dataclass(frozen=True)
class Published:
    """A scorer: what loads it, from a file or folder for each name in ``weights`` (None: it is
    looked for), and what it is, in a line."""

    load: Callable[..., Scorer]
    about: str
    weights: tuple[str, ...]


SCORERS = {
    "clip-vit-g-14": Published(
        clip_vit_g_14, "CLIP score as in DMD2: cosine of open_clip's ViT-g-14", ("clip-vit-g-14",)
    ),
    "clip-torchmetrics": Published(
        clip_torchmetrics, "torchmetrics' CLIPScore: 100 cosine of ViT-L/14", ("clip-torchmetrics",)
    ),
    "hpsv2": Published(hpsv2, "Human Preference Score v2.1", ("hpsv2",)),
    "pickscore": Published(pickscore, "PickScore v1", ("pickscore",)),
    "aesthetic": Published(
        aesthetic,
        "LAION's aesthetic score, 1 to 10; the prompt plays no part",
        ("aesthetic", "clip-torchmetrics"),
    ),
}


def scorer(name: str, weights: Mapping[str, str], device: torch.device | str = "cpu") -> Scorer:
    """The scorer ``name`` of SCORERS. UserError for weights that are not there, or are others."""
    own = SCORERS[name]
    return own.load(*(weights.get(part) for part in own.weights), device=device)
