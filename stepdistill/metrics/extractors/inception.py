"""The Inception features of clean-fid's "clean" mode (Parmar, Zhang and Zhu 2022).

Antialiased bicubic resize to 299x299 in float32, then the 2,048 pooled features. Nothing here
downloads: the file is large, and where clean-fid's own download is interrupted it leaves a
truncated file behind.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...assets import check, locate
from ..features import Features, Pixels, digest
from .inception_network import INCEPTION, SIZE, STATE_DICT, load_inception
from .pixels import colour

FILE, SOURCE, VARIABLE = INCEPTION.file, INCEPTION.source, INCEPTION.variable
CLEAN_FID = Path("." if platform.system() == "Windows" else "/tmp")  # where clean-fid keeps FILE


def find_weights(weights: str | Path | None = None) -> Path:
    """``weights``, else what the environment names, else clean-fid's copy. UserError if missing.

    A file that was asked for and is not there is an error, not a reason to look further.
    """
    file = locate(INCEPTION, weights, [CLEAN_FID / FILE])
    assert file is not None  # it does not lie on the hub
    return file


def checked_weights(weights: str | Path | None) -> Path:
    """:func:`find_weights`, and UserError if it bears a published name and is another file."""
    file = find_weights(weights)
    check(INCEPTION, file)
    check(STATE_DICT, file)
    return file


def inception_features(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Image files or x0 -> features (B, 2048), equal to clean-fid's for the same files.

    UserError if the weights are missing (see :func:`find_weights`) or damaged.
    """
    file = checked_weights(weights)
    network = load_inception(file, device)

    return Features(
        "inception",
        SIZE,
        digest(file),
        "RGB",
        clean,
        network.features,
        resize="to 299x299, antialiased bicubic in float32, not rounded (clean-fid's clean)",
        logits=network.logits,
    )


def clean(pixels: Pixels) -> Tensor:
    """(3, 299, 299): clean-fid's resize, per channel in float32, antialiased and not rounded."""
    resized = _resizer()(colour(pixels))
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


@cache
def _resizer() -> Callable[[Pixels], NDArray[np.float32]]:
    from cleanfid.resize import build_resizer

    resize: Callable[[Pixels], NDArray[np.float32]] = build_resizer("clean")
    return resize
