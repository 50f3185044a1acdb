"""Moments and the Frechet distance, against numpy, three other libraries and closed forms."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.distance_record import main as distance_record
from stepdistill.errors import NonFiniteError, UserError
from stepdistill.evaluation.references.stored import Stored
from stepdistill.metrics.frechet import (
    ROWS,
    Moments,
    Statistics,
    _factor,
    few_samples,
    frechet_distance,
)


def sample(count: int, size: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated features (count, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    z = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return mean + scale * z @ mix


def statistics(features: Tensor, batch_size: int = 10**6) -> Statistics:
    """By streaming batches."""
    moments = Moments()
    for batch in torch.split(features, batch_size):
        moments.add(batch)
    return Statistics.of(moments)


def torchmetrics_distance(a: Statistics, b: Statistics) -> float:
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance))


def torch_fidelity_distance(a: Statistics, b: Statistics) -> float:
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    first, second = ({"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b))
    return float(
        metric.fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    )


OLD_ROOT = "disp" in inspect.signature(scipy.linalg.sqrtm).parameters  # before SciPy 1.18


def clean_fid_distance(a: Statistics, b: Statistics) -> float:
    if not OLD_ROOT:
        pytest.skip("clean-fid's own distance does not run with this scipy")
    from cleanfid.fid import frechet_distance as theirs

    return float(theirs(*clean_fid_arguments(a, b)))


def clean_fid_arguments(a: Statistics, b: Statistics) -> list[NDArray[np.float64]]:
    return [t.numpy() for t in (a.mean, a.covariance, b.mean, b.covariance)]


REFERENCES = [torchmetrics_distance, torch_fidelity_distance, clean_fid_distance]


def by_singular_values(x: Tensor, y: Tensor) -> float:
    """From centred features, no covariance: tr (S_x S_y)^(1/2) is the sum of the singular values
    of X Y^T, over sqrt((n - 1)(m - 1)). Exact for few samples of many features."""
    cx, cy = x - x.mean(0), y - y.mean(0)
    n, m = len(x) - 1, len(y) - 1
    root = torch.linalg.svdvals(cx @ cy.T).sum() / (n * m) ** 0.5
    traces = cx.square().sum() / n + cy.square().sum() / m
    return float((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * root)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_moments_equal_numpy(batch_size: int, mean: float) -> None:
    """Whatever the batch size, and with features far from zero, mean and covariance are numpy's."""
    x = sample(333, 12, 0, mean)
    own = statistics(x, batch_size)
    np.testing.assert_allclose(own.mean, np.mean(x.numpy(), 0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(own.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-9)
    assert own.count == 333


def test_moments_of_float32_are_summed_in_float64() -> None:
    """Float32 features with a large offset give the covariance of the same numbers in float64."""
    x = sample(2_000, 5, 1, mean=300.0).float()
    own = statistics(x, 50)
    assert own.mean.dtype == own.covariance.dtype == torch.float64
    exact = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(own.covariance, exact, rtol=0, atol=1e-11)


def test_the_batch_size_changes_no_bit() -> None:
    """Sums are taken in blocks of a fixed size, whatever batches the rows come in."""
    x = sample(2 * ROWS + 300, 6, 0).float()
    whole = statistics(x)
    for batch_size in (1, 7, 64, 1000, ROWS, ROWS + 1):
        own = statistics(x, batch_size)
        assert torch.equal(own.mean, whole.mean)
        assert torch.equal(own.covariance, whole.covariance)


def test_reading_moments_changes_nothing() -> None:
    """The mean and the covariance may be had on the way, as often as one likes."""
    x = sample(2_500, 6, 0)
    moments = Moments()
    for batch in torch.split(x, 400):
        moments.add(batch)
        assert moments.mean.shape == (6,)
        assert moments.covariance.shape == (6, 6)
    assert torch.equal(moments.covariance, statistics(x).covariance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_named(bad: float) -> None:
    """By the number of the sample over all batches."""
    x = sample(1_500, 6, 0)
    x[1_302, 4] = bad
    with pytest.raises(NonFiniteError, match="in the features of sample 1302:"):
        statistics(x, 100)


def test_equal_samples_are_at_no_distance() -> None:
    """A set that never varies has a covariance of rank 0."""
    a, b = statistics(torch.ones(5, 3)), statistics(torch.full((4, 3), 3.0))
    assert frechet_distance(a, a) == 0
    assert frechet_distance(a, b) == 12


def test_moments_take_features_that_need_gradients() -> None:
    """Features straight from a network are detached, and the caller's tensor is left as it was."""
    x = sample(20, 3, 0).requires_grad_()
    before = x.detach().clone()
    assert not statistics(x, 6).covariance.requires_grad
    assert torch.equal(x, before)


def test_a_covariance_needs_two_samples() -> None:
    """One image has no covariance, and neither has none."""
    moments = Moments()
    with pytest.raises(UserError, match="at least 2 samples, got 0"):
        _ = moments.covariance
    moments.add(torch.ones(1, 4))
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        Statistics.of(moments)


SETS = [  # samples of either side, features
    (500, 400, 3),
    (500, 400, 64),
    (2, 2, 64),
    (20, 30, 64),
    (20, 500, 64),
    (500, 20, 64),
    (64, 64, 64),
    (65, 65, 64),
    (1200, 1100, 512),
    (100, 200, 512),
    (100, 1200, 512),
    (2, 2, 512),
    pytest.param(3000, 2500, 2048, marks=pytest.mark.slow),
    pytest.param(500, 400, 2048, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("theirs", REFERENCES)
@pytest.mark.parametrize(("count", "other", "size"), SETS)
@pytest.mark.filterwarnings("ignore")
def test_distance_equals_other_libraries(
    theirs: Callable[[Statistics, Statistics], float], count: int, other: int, size: int
) -> None:
    """torchmetrics, torch-fidelity and clean-fid give this distance on the same features: with more
    samples than features, fewer on one side or both, as many, one more, and two of each."""
    if (size, theirs) == (2048, clean_fid_distance):
        pytest.skip("its matrix root takes minutes: evals/distance_record.py records it")
    a = statistics(sample(count, size, 0))
    b = statistics(sample(other, size, 1, mean=0.2, scale=1.3))
    assert frechet_distance(a, b) == pytest.approx(theirs(a, b), rel=1e-6)


@pytest.mark.skipif(OLD_ROOT, reason="a SciPy before 1.18, with which clean-fid's distance runs")
def test_distance_with_a_scipy_that_breaks_clean_fid() -> None:
    """SciPy 1.18 took from sqrtm the argument that clean-fid gives it; ours needs no such root."""
    from cleanfid.fid import frechet_distance as theirs

    x, y = sample(500, 64, 0), sample(400, 64, 1, mean=0.2, scale=1.3)
    a, b = statistics(x), statistics(y)
    with pytest.raises(TypeError, match="disp"):
        theirs(*clean_fid_arguments(a, b))
    assert frechet_distance(a, b) == pytest.approx(by_singular_values(x, y), rel=1e-9)


@pytest.mark.parametrize(
    ("count", "other", "size"),
    [(2, 2, 16), (3, 2, 1), (5, 7, 256), (10, 400, 64), (400, 10, 64), (64, 65, 64), (50, 40, 512)],
)
def test_tiny_and_rank_deficient_sets(count: int, other: int, size: int) -> None:
    """Down to two samples the distance is that from the singular values of the features, without
    the 1e-8 that roots of rounding cost the other libraries."""
    x, y = sample(count, size, 0), sample(other, size, 1, mean=0.1, scale=2.0)
    own = frechet_distance(statistics(x), statistics(y))
    assert own == pytest.approx(by_singular_values(x, y), rel=1e-11)


@pytest.mark.parametrize("flat", [(True, True), (True, False), (False, True)])
def test_full_and_deficient_rank_agree(flat: tuple[bool, bool]) -> None:
    """Cholesky's factor, of full rank, and the eigenvectors' give one distance: a direction in
    which neither side varies adds nothing, and one in which one side does adds its own."""
    turn = torch.linalg.qr(sample(49, 49, 2)).Q
    x, y = sample(900, 49, 0), sample(700, 49, 1, mean=0.2, scale=1.3)
    for side, is_flat in zip((x, y), flat, strict=True):
        side[:, 48] *= not is_flat
    a, b = statistics(x @ turn), statistics(y @ turn)
    assert [_factor(s.covariance).shape[1] for s in (a, b)] == [48 if f else 49 for f in flat]
    own = frechet_distance(a, b)
    assert own == pytest.approx(by_singular_values(x, y), rel=1e-11)
    if all(flat):
        full = frechet_distance(statistics(x[:, :48]), statistics(y[:, :48]))
        assert own == pytest.approx(full, rel=1e-11)


def test_closed_form_of_diagonal_gaussians() -> None:
    """For diagonal covariances it is |m - n|^2 + sum (s - r)^2, zero deviations included."""
    m, n = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.linspace(0, 2, 9, dtype=torch.float64)
    r = torch.linspace(3, 0, 9, dtype=torch.float64)
    own = frechet_distance(Statistics(m, s.square().diag(), 0), Statistics(n, r.square().diag(), 0))
    assert own == pytest.approx(float((m - n).square().sum() + (s - r).square().sum()), rel=1e-9)


@pytest.mark.parametrize("count", [20, 500])
def test_symmetric_and_zero_for_itself(count: int) -> None:
    """d(a, b) = d(b, a), d(a, a) = 0 against the size of the covariance, and it does not turn."""
    x, y = sample(count, 32, 0), sample(300, 32, 1, mean=0.5)
    a, b = statistics(x), statistics(y)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-7)
    assert abs(frechet_distance(a, a)) < 1e-6 * float(a.covariance.trace())
    turn = torch.linalg.qr(sample(32, 32, 2)).Q
    turned = frechet_distance(statistics(x @ turn), statistics(y @ turn))
    assert turned == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_mismatched_sizes() -> None:
    """Features of different extractors are a mistake of the user's, said with both sizes."""
    with pytest.raises(UserError, match="differ in size: 3 and 4"):
        frechet_distance(statistics(sample(9, 3, 0)), statistics(sample(9, 4, 0)))


def test_statistics_come_back_from_files(tmp_path: Path) -> None:
    """To the last bit from our file, and from clean-fid's and EDM's .npz without a count."""
    own = statistics(sample(50, 8, 0))
    own.save(tmp_path / "own.safetensors")
    np.savez(tmp_path / "their.npz", mu=own.mean.numpy(), sigma=own.covariance.numpy())
    for name, count in (("own.safetensors", 50), ("their.npz", 0)):
        loaded = Stored.open(tmp_path / name).statistics(None)
        assert torch.equal(loaded.mean, own.mean)
        assert torch.equal(loaded.covariance, own.covariance)
        assert loaded.count == count
    assert torch.equal(Statistics.load(tmp_path / "own.safetensors").mean, own.mean)


def test_damaged_statistics_are_named(tmp_path: Path) -> None:
    """Truncated, of another content, of wrong shapes or with NaN: a sentence with the file."""
    own = statistics(sample(50, 8, 0))
    own.save(tmp_path / "whole.safetensors")
    mean, covariance = own.mean.numpy(), own.covariance.numpy()
    np.savez(tmp_path / "whole.npz", mu=mean, sigma=covariance)
    for suffix in ("safetensors", "npz"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"none.{suffix}").write_bytes(b"")
    np.savez(tmp_path / "images.npz", images=mean)
    np.savez(tmp_path / "shapes.npz", mu=mean, sigma=covariance[:3])
    np.savez(tmp_path / "nan.npz", mu=mean * np.nan, sigma=covariance)
    for name in ("cut.safetensors", "none.safetensors", "cut.npz", "none.npz", "images.npz"):
        with pytest.raises(UserError, match=f"{name} holds no statistics, or is damaged"):
            Stored.open(tmp_path / name).statistics(None)
    with pytest.raises(UserError, match=r"shapes.npz.*\(8,\) and \(3, 8\)"):
        Stored.open(tmp_path / "shapes.npz").statistics(None)
    with pytest.raises(UserError, match=r"nan\.npz holds NaN"):
        Stored.open(tmp_path / "nan.npz").statistics(None)


def test_an_empty_batch_adds_nothing() -> None:
    features = sample(20, 4, seed=0)
    moments = Moments()
    for batch in (features[:0], features, features[:0]):
        moments.add(batch)
    assert Statistics.of(moments).count == 20
    torch.testing.assert_close(moments.mean, features.mean(0))


def test_few_samples_inflate_the_distance_and_are_told() -> None:
    """Two draws of one Gaussian: the sentence is there where the distance is of the rank, not of
    the distributions. D samples about their mean have rank D - 1, so D are too few too."""
    size = 64
    said, distances = [], []
    for count in (size // 2, size, size + 1, 100 * size):
        z = torch.randn(2, count, size, generator=torch.Generator().manual_seed(count)).double()
        a, b = statistics(z[0]), statistics(z[1])
        assert torch.linalg.matrix_rank(a.covariance) == min(count - 1, size)
        said.append(few_samples(count, size))
        distances.append(frechet_distance(a, b))
    assert [sentence is not None for sentence in said] == [True, True, False, False]
    assert said[0] is not None
    assert said[0].startswith("32 samples of 64 features: their covariance has rank 31 at most")
    assert distances[0] > 0.5 * size  # of a trace of 64, with equal distributions
    assert distances[-1] < 0.02 * size
    assert few_samples(0, size) is None


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """The committed record's program, on small features: three times the rows, 46 MB more, take no
    10 MB more memory; and SciPy's root of the same covariances gives the same distance."""
    file = tmp_path / "distance.json"
    sizes = ["--size", "128", "--counts", "[45000, 135000]", "--repeats", "1"]
    distance_record(["--output", str(file), *sizes])
    few, many = json.loads(file.read_text())["sets"]
    assert many["peak_bytes"] - few["peak_bytes"] < 10e6
    assert few["beyond_imports_bytes"] < 64e6
    assert few["scipy"]["relative_difference"] < 1e-9
