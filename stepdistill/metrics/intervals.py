"""How sure a number is: standard errors of means, of the Frechet distance, and over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import torch
from scipy.special import stdtrit
from torch import Tensor

from ..errors import UserError
from .frechet import Moments, Statistics, frechet_distance

PARTS = 16  # of a set of samples: an error from 16 is itself known to 18 %, 1 / sqrt(2 (16 - 1))
REPLICATES = 50


def standard_error(scores: Tensor) -> float:
    """sd / sqrt(n) of independent scores (N,), one an image. UserError with fewer than two."""
    if len(scores) < 2:
        raise UserError(f"a standard error needs at least 2 scores, got {len(scores)}")
    return float(scores.double().std()) / sqrt(len(scores))


@dataclass(frozen=True)
class Interval:
    """``mean`` +- ``half`` holds the true mean with the probability ``level``."""

    mean: float
    half: float
    level: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def seeds_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval mean +- t_(n-1) sd / sqrt(n), of one value a seed.

    It assumes the values about normal. UserError with fewer than two.
    """
    if len(values) < 2:
        raise UserError(f"an interval over seeds needs at least 2 seeds, got {len(values)}")
    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / sqrt(len(values))
    return Interval(mean, half, level)


def dealt(count: int, strata: Tensor | None = None, parts: int = PARTS) -> Tensor:
    """The part (N,) of each of ``count`` samples, for :func:`split_statistics`: in turns, and where
    ``strata`` (N,) of fixed sizes are told, such as the classes of stratified samples, those of
    each stratum in turns, so that every part holds its share of it.

    Sample i mod ``parts`` alone would not do: classes that come round in tens meet 16 parts by
    halves, and the error of a distance near zero came out four times too large.
    """
    part = torch.empty(count, dtype=torch.long)
    order = torch.arange(count) if strata is None else strata.argsort(stable=True)
    part[order] = torch.arange(count) % parts
    return part


def split_statistics(blocks: Iterable[Tensor], part_of: Tensor) -> list[Statistics]:
    """Moments of each part of the samples, whose features come in ``blocks`` (B, D), in order.

    For :func:`frechet_error`; ``part_of`` (N,) is :func:`dealt`. Takes as many times the memory of
    one set's moments as there are parts: 0.9 GB for 16 of 2,048 features. UserError for a part of
    one sample or none.
    """
    parts = int(part_of.max()) + 1
    moments = [Moments() for _ in range(parts)]
    begin = 0
    for features in blocks:
        own = part_of[begin : begin + len(features)].to(features.device)
        for part in range(parts):
            moments[part].add(features[own == part])
        begin += len(features)
    if min(own.count for own in moments) < 2:
        raise UserError(
            f"the error of a distance needs {parts} parts of at least 2 samples each: give more "
            "samples"
        )
    return [Statistics.of(moments.pop(0)) for _ in range(parts)]


def pooled(parts: Sequence[Statistics], times: Sequence[int]) -> Statistics:
    """The Gaussian of all samples of the parts, the b-th taken ``times[b]`` times: scatter within
    parts, (n_b - 1) S_b, and between them, n_b (m_b - m)(m_b - m)^T, over N - 1."""
    taken = [(part, n) for part, n in zip(parts, times, strict=True) if n]
    count = sum(n * part.count for part, n in taken)
    mean = torch.stack([n * part.count / count * part.mean for part, n in taken]).sum(0)
    scatter = torch.zeros_like(parts[0].covariance)
    for part, n in taken:
        scatter.add_(part.covariance, alpha=n * (part.count - 1))
        scatter.addr_(part.mean - mean, part.mean - mean, alpha=n * part.count)
    return Statistics(mean, scatter / (count - 1), count)


def frechet_error(
    parts: Sequence[Statistics],
    reference: Statistics,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> float:
    """Standard error of the Frechet distance of the parts' samples to a fixed reference.

    A block bootstrap (Efron 1979): as many parts are drawn with replacement and their moments
    pooled, ``replicates`` times, and the spread of the distances is the error. Whole parts are
    drawn since samples may be stratified, and since their moments are all that is kept.

    Only the spread is used. A finite sample inflates the distance, and a replicate, which holds
    63 % of the samples, some of them several times, inflates it again by about as much: its own
    mean and percentiles lie above the plain distance, which stays the estimate. The inflation
    itself is no part of the error, and near a distance of zero, where it is most of the value, the
    spread comes out too large rather than too small. So it does where strata have fewer samples
    than there are parts, which then differ in their strata.
    """
    if len(parts) < 2 or replicates < 2:
        raise UserError("the error of a distance needs at least 2 parts and 2 replicates")
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(replicates):
        drawn = torch.randint(len(parts), (len(parts),), generator=generator)
        times = torch.bincount(drawn, minlength=len(parts)).tolist()
        distances.append(frechet_distance(pooled(parts, times), reference))
    return stdev(distances)
