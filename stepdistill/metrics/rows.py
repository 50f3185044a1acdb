"""Features as rows of a matrix: checked, and in blocks, so that no metric needs much memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import NonFiniteError, UserError

BLOCK = 2_048  # rows of one side of a block of distances or kernel values: 32 MiB in float64


def finite_rows(features: Tensor, first: int = 0) -> Tensor:
    """``features`` (B, D) as they are. NonFiniteError names the first row with a NaN or Inf, as
    sample ``first`` + its index."""
    finite = features.isfinite().all(1)
    if not finite.all():
        bad = first + int(finite.int().argmin())
        raise NonFiniteError(f"NaN or Inf in the features of sample {bad}: is its image damaged?")
    return features


def two_sets(x: Tensor, y: Tensor) -> None:
    """Check features (N, D) and (M, D). UserError where they differ in size or a side has none,
    NonFiniteError for a NaN or Inf."""
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features differ in size: {x.shape[1]} and {y.shape[1]}")
    if not len(x) or not len(y):
        raise UserError(f"no samples on one side: got {len(x)} and {len(y)}")
    for features in (x, y):
        for begin in range(0, len(features), BLOCK):
            finite_rows(features[begin : begin + BLOCK], begin)


def blocks(features: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Where each block of at most ``BLOCK`` rows, from ``first`` on, lies; its rows in float64."""
    for begin in range(first, len(features), BLOCK):
        rows = slice(begin, min(begin + BLOCK, len(features)))
        yield rows, features[rows].to(torch.float64)
