"""Scores of single images and their prompts.

A scorer is listed once its published code has been run beside ours in a test, on a tiny random
network, with equal scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..features import Scorer
from .aesthetic import aesthetic as aesthetic
from .hpsv2 import hpsv2 as hpsv2
from .open_clip_score import clip_vit_g_14 as clip_vit_g_14
from .pickscore import pickscore as pickscore
from .torchmetrics_clip_score import clip_torchmetrics as clip_torchmetrics

# (file or folder of the weights, or None to look for them; device) -> the scorer
Load = Callable[[str | None, torch.device | str], Scorer]

# name -> what loads it, and what it is, in a line
SCORERS: dict[str, tuple[Load, str]] = {
    "clip-vit-g-14": (clip_vit_g_14, "CLIP score as in DMD2: cosine of open_clip's ViT-g-14"),
    "clip-torchmetrics": (clip_torchmetrics, "torchmetrics' CLIPScore: 100 cosine of ViT-L/14"),
    "hpsv2": (hpsv2, "Human Preference Score v2.1"),
    "pickscore": (pickscore, "PickScore v1"),
    "aesthetic": (aesthetic, "LAION's aesthetic score, 1 to 10; the prompt plays no part"),
}
