"""CMMD: the squared maximum mean discrepancy of CLIP embeddings under a Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import blocks, finite_rows, two_sets

SIGMA = 10.0
SCALE = 1_000.0


def cmmd(x: Tensor, y: Tensor) -> float:
    """1000 (mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j)) with the kernel
    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10   (Jayasumana et al. 2024, section 4).

    Of embeddings (N, D) and (M, D), brought to unit length. The means take in i = j, as the
    published code's do: it is the biased estimate (Gretton et al. 2012, Eq. 5), never negative, and
    larger than the unbiased one by about 1000 (1 - mean k) (1/N + 1/M). In float64 on the device of
    the embeddings, in blocks of 2,048 x 2,048 values, 32 MiB.
    """
    two_sets(x, y)
    x, y = _unit(x), _unit(y)
    return SCALE * (_within(x) + _within(y) - 2 * _between(x, y))


def _unit(x: Tensor) -> Tensor:
    return finite_rows(x / x.norm(dim=1, keepdim=True, dtype=torch.float64))


def _within(x: Tensor) -> float:
    """Mean of k over all pairs, i = j among them; blocks off the diagonal count for two."""
    total = 0.0
    for i, rows in blocks(x):
        for j, columns in blocks(x, i.start):
            total += (1 if i == j else 2) * _kernel_sum(rows, columns)
    return total / len(x) ** 2


def _between(x: Tensor, y: Tensor) -> float:
    total = sum(_kernel_sum(rows, columns) for _, rows in blocks(x) for _, columns in blocks(y))
    return total / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """sum_ij exp((x_i . y_j - 1) / sigma^2), as |x - y|^2 = 2 - 2 x . y of unit vectors."""
    return float((x @ y.T).sub_(1).div_(SIGMA**2).exp_().sum())
