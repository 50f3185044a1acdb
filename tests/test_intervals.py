"""Standard errors, against closed forms and against fresh draws."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev

import pytest
import scipy.stats
import torch
from torch import Tensor

from stepdistill.data.digits import stratified_labels
from stepdistill.errors import UserError
from stepdistill.metrics.frechet import Moments, Statistics, frechet_distance
from stepdistill.metrics.intervals import (
    dealt,
    frechet_error,
    pooled,
    seeds_interval,
    split_statistics,
    standard_error,
)

SIZE = 6
SCALES = torch.linspace(0.8, 1.6, SIZE, dtype=torch.float64)
SHIFT = 0.3


def draw(count: int, seed: int, mean: float = SHIFT, scales: Tensor = SCALES) -> Tensor:
    """Independent Gaussian features (count, SIZE), float64."""
    generator = torch.Generator().manual_seed(seed)
    return mean + scales * torch.randn(count, SIZE, generator=generator, dtype=torch.float64)


def statistics(features: Tensor) -> Statistics:
    moments = Moments()
    moments.add(features)
    return Statistics.of(moments)


def parts_of(features: Tensor, parts: int, shards: int) -> list[Statistics]:
    """Whole shards of them, in turns."""
    blocks = torch.split(features, len(features) // shards)
    return split_statistics(blocks, torch.arange(len(features)) // len(blocks[0]) % parts)


REFERENCE = Statistics(torch.zeros(SIZE).double(), torch.eye(SIZE).double(), 0)


def test_the_error_of_a_mean() -> None:
    """sd / sqrt(n), as scipy has it; over fresh draws the means spread by that much."""
    scores = draw(500, 0)[:, 0]
    assert standard_error(scores.float()) == pytest.approx(scipy.stats.sem(scores), rel=1e-6)
    means = [float(draw(500, seed)[:, 0].mean()) for seed in range(1, 401)]
    assert standard_error(scores) == pytest.approx(stdev(means), rel=0.1)
    with pytest.raises(UserError, match="at least 2 scores, got 1"):
        standard_error(scores[:1])


@pytest.mark.parametrize("level", [0.68, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_over_seeds_is_student_s(count: int, level: float) -> None:
    values = draw(count, 0)[:, 0].tolist()
    low, high = scipy.stats.t.interval(
        level, count - 1, loc=fmean(values), scale=scipy.stats.sem(values)
    )
    own = seeds_interval(values, level)
    assert (own.mean, own.low, own.high) == pytest.approx((fmean(values), low, high), rel=1e-9)
    assert own.level == level


def test_the_interval_over_seeds_holds_the_mean() -> None:
    """Of 2,000 triples of draws, 95 % hold the true mean, within 3 standard errors of a share."""
    triples = draw(6_000, 0)[:, 0].reshape(2_000, 3).tolist()
    own = [seeds_interval(values) for values in triples]
    share = sum(i.low <= SHIFT <= i.high for i in own) / len(own)
    assert abs(share - 0.95) < 3 * (0.95 * 0.05 / 2_000) ** 0.5
    with pytest.raises(UserError, match="at least 2 seeds, got 1"):
        seeds_interval([1.0])


def test_parts_pool_to_the_whole() -> None:
    """Every part once is all samples, and a part twice is its samples twice; parts of different
    counts, far apart and far from zero."""
    x = draw(230, 0) * torch.linspace(1, 5, 230)[:, None] + 1_000
    shards = list(torch.split(x, 20))
    parts = split_statistics(shards, torch.arange(230) // 20 % 5)
    assert [part.count for part in parts] == [60, 50, 40, 40, 40]
    for times in ([1] * 5, [2, 0, 1, 0, 2], [0, 0, 3, 0, 0]):
        rows = torch.cat([s for i, s in enumerate(shards) for _ in range(times[i % 5])])
        own, exact = pooled(parts, times), statistics(rows)
        torch.testing.assert_close(own.mean, exact.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(own.covariance, exact.covariance, rtol=1e-10, atol=1e-10)
        assert own.count == len(rows)


def closed_form(count: int) -> float:
    """Of diagonal Gaussians, to first order: each feature adds (m - n)^2 + (s - r)^2, where the
    sample's m varies by s^2 / N and its s by s^2 / (2 N)."""
    means = 4 * SHIFT**2 * SCALES.square() / count
    deviations = 4 * (SCALES - 1).square() * SCALES.square() / (2 * count)
    return float((means + deviations).sum().sqrt())


def test_the_error_of_a_distance_is_its_spread() -> None:
    """The bootstrap's, on average over sets, the spread over 300 fresh sets and the closed form
    agree within 10 %; on one set of 16 parts it is within 50 %, which is 2.8 of its own errors."""
    count = 2_000
    fresh = [frechet_distance(statistics(draw(count, 1_000 + s)), REFERENCE) for s in range(300)]
    errors = [
        frechet_error(parts_of(draw(count, seed), 16, 80), REFERENCE, seed=seed)
        for seed in range(30)
    ]
    root = fmean(error**2 for error in errors) ** 0.5
    assert stdev(fresh) == pytest.approx(closed_form(count), rel=0.1)
    assert root == pytest.approx(closed_form(count), rel=0.1)
    assert all(abs(error / closed_form(count) - 1) < 0.5 for error in errors)


def test_stratified_samples_have_the_error_of_stratified_draws() -> None:
    """Where each shard holds both of two far classes equally often, their share does not vary, and
    a bootstrap of whole shards knows it; of shards that hold them by chance it would not."""

    def stratified(seed: int) -> Tensor:
        return draw(1_920, seed, 0) + 6 * (torch.arange(1_920) % 2).double()[:, None]

    def mixed(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return stratified(seed)[torch.randperm(1_920, generator=generator)]

    def error(samples: Callable[[int], Tensor]) -> float:
        own = [frechet_error(parts_of(samples(s), 16, 80), REFERENCE, seed=s) for s in range(20)]
        return fmean(value**2 for value in own) ** 0.5

    spread = stdev(frechet_distance(statistics(stratified(s)), REFERENCE) for s in range(200))
    assert error(stratified) == pytest.approx(spread, rel=0.15)
    assert error(mixed) > 2 * spread


def test_each_part_has_its_share_of_each_class() -> None:
    """Sixteen parts of ten classes that come round in tens: sample i mod 16 would put even and odd
    classes into different parts. Parts and shares differ by one sample at most, in any order and
    however the features are cut into blocks; without classes the parts are in turns."""
    proportions = torch.tensor([3.0, 1, 1, 2, 1, 1, 1, 0.2, 1, 1])
    for strata in (torch.arange(1_000) % 10, stratified_labels(proportions, 997)):
        part = dealt(len(strata), strata)
        shares = torch.stack([torch.bincount(part[strata == k], minlength=16) for k in range(10)])
        assert int((shares.amax(1) - shares.amin(1)).max()) == 1
        assert int(shares.sum(0).max() - shares.sum(0).min()) <= 1
    assert torch.equal(dealt(40), torch.arange(40) % 16)
    x, part = draw(300, 0), dealt(300, torch.arange(300) % 10)
    for blocks in (torch.split(x, 7), torch.split(x, 300)):
        for i, own in enumerate(split_statistics(blocks, part)):
            torch.testing.assert_close(own.covariance, statistics(x[part == i]).covariance)


def test_classes_in_tens_have_the_error_of_stratified_draws() -> None:
    """Ten far classes in turns, whose shares never vary: dealt by class the error is the spread of
    fresh sets; dealt in turns it would be several times that."""
    classes = torch.arange(1_600) % 10

    def samples(seed: int) -> Tensor:
        return draw(1_600, seed, 0) + 2 * classes.double()[:, None]

    def error(strata: Tensor | None) -> float:
        parts = [split_statistics([samples(s)], dealt(1_600, strata)) for s in range(20)]
        own = [frechet_error(part, REFERENCE, seed=s) for s, part in enumerate(parts)]
        return fmean(value**2 for value in own) ** 0.5

    spread = stdev(frechet_distance(statistics(samples(s)), REFERENCE) for s in range(200))
    assert error(classes) == pytest.approx(spread, rel=0.15)
    assert error(None) > 3 * spread


def test_replicates_lie_above_the_distance() -> None:
    """A replicate's inflation comes on top of the sample's, so the mean of replicates is no
    estimate: with as good as no distance they double it."""
    x = draw(320, 0, 0, torch.ones(SIZE).double())
    parts = parts_of(x, 16, 160)
    plain = frechet_distance(pooled(parts, [1] * 16), REFERENCE)
    generator = torch.Generator().manual_seed(0)
    replicates = []
    for _ in range(200):
        drawn = torch.randint(16, (16,), generator=generator)
        times = torch.bincount(drawn, minlength=16).tolist()
        replicates.append(frechet_distance(pooled(parts, times), REFERENCE))
    assert 1.5 < fmean(replicates) / plain < 3


def test_near_no_distance_the_error_is_too_large_rather_than_too_small() -> None:
    """Samples of the reference itself, where the distance is all inflation."""
    ones = torch.ones(SIZE).double()
    fresh = [frechet_distance(statistics(draw(800, s, 0, ones)), REFERENCE) for s in range(200)]
    errors = [
        frechet_error(parts_of(draw(800, s, 0, ones), 16, 80), REFERENCE, seed=s) for s in range(20)
    ]
    assert 1 < fmean(errors) / stdev(fresh) < 3


def test_the_seed_is_the_error_s() -> None:
    """Equal seeds give equal errors; too few samples, parts or replicates are mistakes."""
    parts = parts_of(draw(320, 0), 16, 32)
    assert frechet_error(parts, REFERENCE, 5) == frechet_error(parts, REFERENCE, 5)
    assert frechet_error(parts, REFERENCE, 5) != frechet_error(parts, REFERENCE, 5, seed=1)
    for count in (16, 31):
        with pytest.raises(UserError, match="16 parts of at least 2 samples"):
            split_statistics([draw(count, 0)], dealt(count))
    for few, replicates in ((parts[:1], 5), (parts, 1)):
        with pytest.raises(UserError, match="at least 2 parts and 2 replicates"):
            frechet_error(few, REFERENCE, replicates)
