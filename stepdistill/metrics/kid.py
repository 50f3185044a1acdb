"""The kernel distance (KID): the unbiased squared MMD of features under a cubic kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .rows import two_sets

SUBSETS = 100
SUBSET_SIZE = 1_000


@dataclass(frozen=True)
class KernelDistance:
    """Mean over the subsets and their standard deviation, the published "+-".

    The deviation tells how far one subset is off; it is no standard error of the mean, since the
    subsets share samples.
    """

    mean: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    x: Tensor,
    y: Tensor,
    subset_size: int | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> KernelDistance:
    """KID of features x (N, D) and y (M, D), float64   (Binkowski et al. 2018, section 4).

    ``subset_size`` is 1,000, or all of the smaller set where it has fewer, unless it is given:
    then a set with fewer is a UserError. Subsets are drawn by ``seed``.
    """
    least = min(len(x), len(y))
    if subset_size is None:
        subset_size = min(SUBSET_SIZE, least)
    if not 2 <= subset_size <= least:
        raise UserError(
            f"a kernel distance on subsets of {subset_size} needs as many samples on both sides, "
            f"and 2 at least: got {len(x)} and {len(y)}"
        )
    drawn = draw_subsets(len(x), len(y), subset_size, subsets, seed)
    values = kernel_distances(x, y, drawn)
    return KernelDistance(
        float(values.mean()), float(values.std(unbiased=False)), subsets, subset_size
    )


def draw_subsets(
    n: int, m: int, size: int, subsets: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of ``size`` of n and of m samples, without replacement, ``subsets`` times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(subsets):
        first, second = (torch.randperm(count, generator=generator)[:size] for count in (n, m))
        yield first, second


def kernel_distances(x: Tensor, y: Tensor, subsets: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The squared MMD of each pair of subsets, given as indices into x and y: (S,), float64."""
    two_sets(x, y)
    return torch.stack([squared_mmd(x[first], y[second]) for first, second in subsets])


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """sum_{i != j} k(x_i, x_j) / (n (n - 1)) + the same of y - 2 mean k(x_i, y_j), with the kernel
    k(x, y) = (x . y / D + 1)^3   (Gretton et al. 2012, Eq. 3). Unbiased, so it may be negative."""
    x, y = x.double(), y.double()
    within = [
        (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
        for k in (_cubic(x, x), _cubic(y, y))
    ]
    return within[0] + within[1] - 2 * _cubic(x, y).mean()


def paired_squared_mmd(x: Tensor, y: Tensor, block: int = 1_000) -> Tensor:
    """Mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j), with the same
    kernel   (Gretton et al. 2012, Eq. 4), of x and y (N, D).

    For samples of which x_i and y_i are told the same: unbiased whatever they are told, where
    :func:`squared_mmd` of classes in equal parts comes out too small, since it counts y_i with x_i.
    """
    two_sets(x, y)
    x, y, total = x.double(), y.double(), torch.zeros((), dtype=torch.float64)
    for begin in range(0, len(x), block):
        a, b = x[begin : begin + block], y[begin : begin + block]
        h = _cubic(a, x) + _cubic(b, y) - _cubic(a, y) - _cubic(b, x)
        total += h.sum() - h.diagonal(begin).sum()
    return total / (len(x) * (len(x) - 1))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
