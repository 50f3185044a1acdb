"""The Frechet distance between Gaussians fitted to features, from streamed float64 moments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .rows import finite_rows

ROWS = 1_024  # summed at a time


class Moments:
    """Count, mean and covariance of features (D,), streamed batch by batch in float64.

    Rows are summed in blocks of ``ROWS`` whatever batches they come in, so the batch size changes
    no bit; about the first row, so that large offsets lose no digits. It takes 8 D (2 D + 2 ROWS)
    bytes at most, however many rows come.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._total = torch.empty(0, dtype=torch.float64)
        self._outer = self._held = torch.empty(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add features (B, D); nothing for B = 0. NonFiniteError names the first bad row."""
        for rows in torch.split(features.detach(), ROWS):
            self._add(finite_rows(rows, self.count).to("cpu", torch.float64))

    def _add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        if not self.count:
            size = rows.shape[1]
            self._shift, self._total = rows[0].clone(), torch.zeros(size, dtype=torch.float64)
            self._outer = torch.zeros(size, size, dtype=torch.float64)
            self._held = torch.empty(ROWS, size, dtype=torch.float64)
        held = self.count % ROWS
        taken, later = rows[: ROWS - held], rows[ROWS - held :]
        torch.sub(taken, self._shift, out=self._held[held : held + len(taken)])
        self.count += len(taken)
        if self.count % ROWS == 0:
            self._total += self._held.sum(0)
            self._outer += _scatter(self._held)
        self._add(later)

    @property
    def _rest(self) -> Tensor:
        """Rows that wait for their block to fill."""
        return self._held[: self.count % ROWS]

    @property
    def _centre(self) -> Tensor:
        return (self._total + self._rest.sum(0)) / self.count

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self._shift + self._centre

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased; UserError with fewer than two samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        covariance = _scatter(self._rest)
        covariance += self._outer
        covariance -= self.count * torch.outer(self._centre, self._centre)
        return covariance / (self.count - 1)


def _scatter(x: Tensor) -> Tensor:
    """x^T x. Numpy's, since it computes one triangle of a product of a matrix with itself."""
    rows = x.numpy()
    return torch.from_numpy(rows.T @ rows)


@dataclass(frozen=True)
class Statistics:
    """A fitted Gaussian: mean (D,), covariance (D, D), float64, and how many samples made it."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, moments: Moments) -> Statistics:
        """The Gaussian of streamed moments."""
        return cls(moments.mean, moments.covariance, moments.count)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        count = torch.tensor(self.count)
        save_file({"mean": self.mean, "covariance": self.covariance, "count": count}, path)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what :meth:`save` wrote."""
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["covariance"], int(tensors["count"]))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))   (Heusel et al. 2017, Eq. 6).

    With S_a = F F^T, the trace of the root is the sum of the roots of the eigenvalues of
    F^T S_b F, which are those of S_a S_b but for zeros. F is of the side of lower rank: a root of
    rounding would be 1e-8 of the largest for each missing dimension.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features differ in size: {len(a.mean)} and {len(b.mean)}")
    factors = ((_factor(a.covariance), b.covariance), (_factor(b.covariance), a.covariance))
    factor, other = min(factors, key=lambda pair: pair[0].shape[1])
    roots = torch.linalg.eigvalsh(factor.T @ other @ factor).clamp(min=0).sqrt()
    trace = a.covariance.trace() + b.covariance.trace() - 2 * roots.sum()
    return float((a.mean - b.mean).square().sum() + trace)


def _factor(covariance: Tensor) -> Tensor:
    """F (D, R) with F F^T the covariance of rank R: Cholesky's where R is D, which takes a
    twentieth of the time, else eigenvectors times the roots of their eigenvalues."""
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(covariance)
    pivots = lower.diagonal().square()
    if not failed and pivots.amin() > 1e-10 * pivots.amax():
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor


def few_samples(count: int, size: int) -> str | None:
    """What it means that ``count`` samples are no more than their ``size`` features, in a sentence.

    None where they are more, and for a count of 0, which is a file's that does not tell it.
    """
    if not 0 < count <= size:
        return None
    return (
        f"{count:,} samples of {size:,} features: their covariance has rank {count - 1:,} at most, "
        "which inflates the Frechet distance, so it may be compared only with one at the same "
        f"count; give more than {size:,} samples, better ten times as many"
    )
