"""CMMD, against its published form written out and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stepdistill.errors import NonFiniteError, UserError
from stepdistill.metrics import rows
from stepdistill.metrics.cmmd import cmmd


def sample(count: int, seed: int, spread: float = 1.0, size: int = 48) -> Tensor:
    """Embeddings (count, size) of unit length about a direction, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64) * spread + 0.7
    return x / x.norm(dim=1, keepdim=True)


def published(x: Tensor, y: Tensor) -> float:
    """With squared lengths from the products, and plain means over all pairs."""
    a, b = x.numpy(), y.numpy()

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        squares = np.diag(p @ p.T)[:, None] + np.diag(q @ q.T)[None] - 2 * p @ q.T
        return float(np.exp(-squares / (2 * 10**2)).mean())

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("block", [13, 37, 4096])
@pytest.mark.parametrize(("n", "m"), [(90, 70), (1, 1), (2, 75)])
def test_equals_the_published_form(
    n: int, m: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever blocks, with sets of different counts."""
    monkeypatch.setattr(rows, "BLOCK", block)
    x, y = sample(n, 0), sample(m, 1, 1.5)
    assert cmmd(x, y) == pytest.approx(published(x, y), rel=1e-9)


def test_embeddings_are_brought_to_unit_length() -> None:
    """So that whether an encoder has done it changes nothing."""
    x, y = sample(50, 0), sample(40, 1, 1.5)
    longer = x * torch.linspace(0.5, 9, 50).double()[:, None]
    assert cmmd(longer, 3 * y) == pytest.approx(published(x, y), rel=1e-9)


def test_closed_forms() -> None:
    """Zero against itself, and for two points u and v, 2000 (1 - exp(-|u - v|^2 / 200))."""
    x = sample(60, 0)
    assert cmmd(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    u, v = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.6, 0.8, 0]])
    exact = 2000 * (1 - math.exp(-0.8 / 200))
    assert cmmd(u.repeat(5, 1), v.repeat(3, 1)) == pytest.approx(exact, rel=1e-6)


def test_is_the_biased_estimate() -> None:
    """Of two draws of one distribution it is 1000 (1 - mean k) (1/N + 1/M) on average, not 0."""
    values, spread = [], 0.0
    for seed in range(40):
        x, y = sample(100, 2 * seed), sample(50, 2 * seed + 1)
        values.append(cmmd(x, y))
        cosines = x @ y.T
        spread += float(1 - ((cosines - 1) / 100).exp().mean()) / 40
    biased = 1000 * spread * (1 / 100 + 1 / 50)
    assert min(values) > 0
    assert sum(values) / 40 == pytest.approx(biased, rel=0.1)


def test_mistakes_are_named() -> None:
    """Embeddings of other sizes, NaN, and one of no length."""
    x = sample(9, 0)
    with pytest.raises(UserError, match="differ in size: 48 and 47"):
        cmmd(x, x[:, :47])
    for bad in (torch.nan, 0.0):
        y = x.clone()
        y[4] *= bad
        with pytest.raises(NonFiniteError, match="sample 4"):
            cmmd(x, y)
    with pytest.raises(UserError, match="no samples on one side: got 0 and 9"):
        cmmd(x[:0], x)
