"""The kernel distance, against three other libraries on equal subsets, and as a sum of pairs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepdistill.errors import NonFiniteError, UserError
from stepdistill.metrics.kid import draw_subsets, kernel_distance, kernel_distances, squared_mmd

Subsets = list[tuple[Tensor, Tensor]]


def sample(count: int, size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Positive, correlated features, as a network's after its last ReLU (count, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9)).double() / size**0.5
    return scale * (z @ mix).relu()


def torch_fidelity_kid(
    x: Tensor, y: Tensor, size: int, count: int
) -> tuple[Subsets, float, float | None]:
    """It draws first from the generated, then from the real, by one numpy generator."""
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    theirs = metric.kid_features_to_metric(
        x, y, kid_subsets=count, kid_subset_size=size, rng_seed=2020, verbose=False
    )
    subsets = numpy_subsets(np.random.RandomState(2020), (len(x), len(y)), size, count)
    names = (metric.KEY_METRIC_KID_MEAN, metric.KEY_METRIC_KID_STD)
    return subsets, theirs[names[0]], theirs[names[1]]


def clean_fid_kid(
    x: Tensor, y: Tensor, size: int, count: int
) -> tuple[Subsets, float, float | None]:
    """It draws first from the second set, by numpy's global generator, and gives the mean alone."""
    from cleanfid.fid import kernel_distance as theirs

    np.random.seed(3)
    value = theirs(x.numpy(), y.numpy(), num_subsets=count, max_subset_size=size)
    subsets = numpy_subsets(np.random.RandomState(3), (len(y), len(x)), size, count)
    return [(own, other) for other, own in subsets], value, None


def torchmetrics_kid(
    x: Tensor, y: Tensor, size: int, count: int
) -> tuple[Subsets, float, float | None]:
    """It takes the first of whole permutations, of the real and then of the generated, by torch's
    global generator."""
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(nn.Identity(), subsets=count, subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mean, deviation = metric.compute()
        torch.manual_seed(5)
        drawn = [(torch.randperm(len(y)), torch.randperm(len(x))) for _ in range(count)]
    subsets = [(own[:size], other[:size]) for other, own in drawn]
    return subsets, float(mean), float(deviation)


def numpy_subsets(
    rng: np.random.RandomState, counts: tuple[int, int], size: int, subsets: int
) -> Subsets:
    """Pairs of choices without replacement."""

    def choice(count: int) -> Tensor:
        return torch.from_numpy(rng.choice(count, size, replace=False))

    return [(choice(counts[0]), choice(counts[1])) for _ in range(subsets)]


LIBRARIES = [torch_fidelity_kid, clean_fid_kid, torchmetrics_kid]
# generated, real, features, samples a subset, subsets: many, all of one side, two of two
SETS = [(300, 260, 64, 100, 7), (40, 70, 512, 40, 5), (2, 2, 64, 2, 3), (320, 350, 2048, 300, 2)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("n", "m", "features", "size", "subsets"), SETS)
@pytest.mark.filterwarnings("ignore")
def test_equals_other_libraries_on_equal_subsets(
    library: Callable[[Tensor, Tensor, int, int], tuple[Subsets, float, float | None]],
    n: int,
    m: int,
    features: int,
    size: int,
    subsets: int,
) -> None:
    """torch-fidelity, clean-fid and torchmetrics, each on the subsets that it draws itself."""
    x, y = sample(n, features, 0, 1.1), sample(m, features, 1)
    drawn, mean, deviation = library(x, y, size, subsets)
    own = kernel_distances(x, y, drawn)
    assert float(own.mean()) == pytest.approx(mean, rel=1e-6)
    if deviation is not None:
        assert float(own.std(unbiased=False)) == pytest.approx(deviation, rel=1e-6, abs=1e-12)


def test_is_the_sum_over_pairs() -> None:
    """Of the kernel (x . y / D + 1)^3, written out, with sets of different counts."""
    x, y = sample(5, 3, 0), sample(4, 3, 1, 2.0)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within = [
        sum(kernel(s[i], s[j]) for i, j in product(range(len(s)), repeat=2) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    between = sum(kernel(a, b) for a, b in product(x, y)) / (len(x) * len(y))
    assert float(squared_mmd(x, y)) == pytest.approx(sum(within) - 2 * between, rel=1e-12)


def test_is_unbiased() -> None:
    """Over many draws of one distribution the mean is 0 within 3 standard errors, whatever the
    count, and single values lie on both sides of it."""
    x, y = sample(4_000, 4, 0), sample(4_000, 4, 1)
    for size in (2, 10):
        pairs = zip(torch.split(x, size), torch.split(y, size), strict=True)
        values = torch.stack([squared_mmd(a, b) for a, b in pairs])
        assert abs(float(values.mean())) < 3 * float(values.std()) / len(values) ** 0.5
        assert values.min() < 0 < values.max()


def test_float32_features_lose_nothing() -> None:
    """The kernel is taken in float64 of the features as they are."""
    x, y = sample(200, 64, 0).float(), sample(200, 64, 1).float()
    own, exact = squared_mmd(x, y), squared_mmd(x.double(), y.double())
    assert own.dtype == torch.float64
    assert own == exact


def test_subsets_are_the_seed_s() -> None:
    """The same seed gives the same value, and the mean is that of the subsets it draws: without
    replacement, each from its own set."""
    x, y = sample(90, 8, 0, 1.2), sample(60, 8, 1)
    own = kernel_distance(x, y, subset_size=30, subsets=11, seed=4)
    drawn = list(draw_subsets(90, 60, 30, 11, 4))
    values = kernel_distances(x, y, drawn)
    assert own == kernel_distance(x, y, subset_size=30, subsets=11, seed=4)
    assert own.mean != kernel_distance(x, y, subset_size=30, subsets=11, seed=5).mean
    assert own.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert own.deviation == pytest.approx(float(values.std(unbiased=False)), rel=1e-12)
    assert (own.subsets, own.subset_size) == (11, 30)
    for first, second in drawn:
        assert len(first.unique()) == len(second.unique()) == 30
        assert first.max() < 90
        assert second.max() < 60
    assert max(int(first.max()) for first, _ in drawn) >= 60


def test_small_sets_are_taken_whole_unless_a_size_is_given() -> None:
    """All of the smaller set where it has fewer than 1,000; a size that it lacks is a mistake."""
    x, y = sample(40, 8, 0), sample(25, 8, 1)
    assert kernel_distance(x, y, subsets=2).subset_size == 25
    assert kernel_distance(x[:25], y, subsets=3).deviation == pytest.approx(0, abs=1e-12)
    for size in (26, 1):
        with pytest.raises(UserError, match=f"subsets of {size} .*got 40 and 25"):
            kernel_distance(x, y, subset_size=size)
    with pytest.raises(UserError, match=r"subsets of 1 .*got 1 and 25"):
        kernel_distance(x[:1], y)


def test_bad_features_are_named() -> None:
    """Features of other sizes, and NaN."""
    x, y = sample(40, 8, 0), sample(25, 7, 1)
    with pytest.raises(UserError, match="differ in size: 8 and 7"):
        kernel_distance(x, y)
    x[17, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 17"):
        kernel_distance(x, x)
