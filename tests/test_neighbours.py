"""Precision, recall, density, coverage: against torch-fidelity and the definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stepdistill.errors import NonFiniteError, UserError
from stepdistill.metrics import rows
from stepdistill.metrics.neighbours import Neighbours, neighbours

SETS = [(500, 400, 64), (4, 6, 64), (300, 700, 512), (7, 7, 2), (100, 150, 2048)]


def sample(count: int, size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Positive features (count, size) on a bent sheet of few dimensions, float32."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(count, 6, generator=generator)
    mix = torch.randn(6, size, generator=torch.Generator().manual_seed(9))
    return (z @ mix + 0.5 * torch.randn(count, size, generator=generator)).relu()


def written_out(generated: Tensor, real: Tensor, k: int, density_k: int) -> Neighbours:
    """The definitions on all differences at once; <= for precision and recall, < for the rest."""
    x, y = generated.double().numpy(), real.double().numpy()

    def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None] - b[None]).sum(-1)

    def radii(a: np.ndarray, nearest: int) -> np.ndarray:
        others = squares(a, a) + np.diag(np.full(len(a), np.inf))
        return np.sort(others, 1)[:, nearest - 1]

    between = squares(x, y)
    inside = between < radii(y, density_k)
    return Neighbours(
        precision=(between <= radii(y, k)).any(1).mean(),
        recall=(between <= radii(x, k)[:, None]).any(0).mean(),
        density=inside.sum() / (density_k * len(x)),
        coverage=inside.any(0).mean(),
        nearest=k,
        density_nearest=density_k,
    )


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(("n", "m", "size"), SETS)
def test_precision_and_recall_equal_torch_fidelity(n: int, m: int, size: int, part: bool) -> None:
    """By its path that holds all distances, and by the one that saves memory."""
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = sample(n, size, 0, 0.8), sample(m, size, 1)
    theirs = metric.prc_features_to_metric(
        x.double(),
        y.double(),
        prc_neighborhood=3,
        prc_batch_size=150,
        save_cpu_ram=part,
        verbose=False,
    )
    own = neighbours(x, y, density_nearest=3)
    assert own.precision == pytest.approx(theirs[metric.KEY_METRIC_PRECISION], rel=1e-6)
    assert own.recall == pytest.approx(theirs[metric.KEY_METRIC_RECALL], rel=1e-6)


@pytest.mark.parametrize("block", [13, 37, 4096])
@pytest.mark.parametrize(("n", "m", "size"), [(120, 90, 3), (90, 120, 64), (6, 40, 2)])
def test_all_four_are_their_definitions(
    n: int, m: int, size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last count, in whatever blocks."""
    monkeypatch.setattr(rows, "BLOCK", block)
    x, y = sample(n, size, 0, 0.7), sample(m, size, 1)
    assert neighbours(x, y) == written_out(x, y, 3, 5)
    assert neighbours(x, y, 1, 2) == written_out(x, y, 1, 2)


@pytest.mark.parametrize("offset", [0.0, 0.1, 1000.1])
@pytest.mark.parametrize("block", [7, 4096])
def test_ties_are_ties(offset: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of a small lattice, where most distances are equal and many points are one: what
    is on the edge counts for precision and recall, and not for density and coverage."""
    monkeypatch.setattr(rows, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, high, (80, 3), generator=generator).double() for high in (3, 4))
    own = neighbours(x + offset, y + offset)
    assert own == written_out(x, y, 3, 5)
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = metric.calculate_precision_recall_full(x, y)
    assert (own.precision, own.recall) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("size", [16, 64, 2048])
def test_a_set_against_itself(size: int) -> None:
    """Everything is precise, recalled and covered, and the density is 1 to the last digit: the
    balls about a point's copies hold their centre and k - 1 neighbours, the k-th on the edge."""
    x = sample(300, size, 0)
    own = neighbours(x[torch.randperm(300, generator=torch.Generator().manual_seed(1))], x)
    assert own == Neighbours(precision=1.0, recall=1.0, density=1.0, coverage=1.0)


def test_an_outlier_does_not_widen_the_ties() -> None:
    """A sample far from all, as a damaged image's: what rounding cannot tell apart depends on the
    samples about a ball, not on the farthest."""
    x, y = sample(200, 64, 0, 0.7), sample(200, 64, 1)
    x[5] *= 1e6
    assert neighbours(x, y) == written_out(x, y, 3, 5)


def test_fidelity_and_diversity_come_apart() -> None:
    """Generated samples of the middle are precise and lack recall; spread ones the other way."""
    real = sample(600, 16, 0)
    narrow, wide = (neighbours(sample(600, 16, 1, scale), real) for scale in (0.3, 3.0))
    assert narrow.precision > 0.9 > 0.5 > narrow.recall
    assert wide.recall > 0.7 > 0.5 > wide.precision
    assert narrow.density > 1 > 0.5 > wide.density
    assert narrow.coverage < 0.8


def test_mistakes_are_named() -> None:
    """Too few samples for their neighbours, other features, NaN, and no neighbours at all."""
    x = sample(10, 4, 0)
    assert neighbours(x[:4], x[:6]).nearest == 3
    for generated, real, what in ((x[:3], x, "3 samples do not have 3"), (x, x[:5], "5 .* have 5")):
        with pytest.raises(UserError, match=what):
            neighbours(generated, real)
    with pytest.raises(UserError, match="differ in size: 4 and 3"):
        neighbours(x, x[:, :3])
    with pytest.raises(UserError, match="first neighbour"):
        neighbours(x, x, nearest=0)
    y = x.clone()
    y[2, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 2"):
        neighbours(x, y)
    with pytest.raises(UserError, match="no samples on one side: got 0 and 10"):
        neighbours(x[:0], x)
