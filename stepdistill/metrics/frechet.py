"""The Frechet distance between Gaussians fitted to features, from streamed float64 moments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError


@dataclass
class Moments:
    """Count, sum and sum of outer products of features (D,), added batch by batch in float64.

    Sums are taken about the first batch's mean, so that large offsets lose no digits.
    """

    count: int = 0
    shift: Tensor | None = None
    total: Tensor | None = None
    outer: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add features (B, D); nothing for B = 0."""
        if not len(features):
            return
        x = features.detach().double().cpu()
        if self.shift is None or self.total is None or self.outer is None:
            self.shift = x.mean(0)
            self.total, self.outer = (
                torch.zeros_like(self.shift),
                torch.zeros(2 * x.shape[1:]).double(),
            )
        x = x - self.shift
        self.count += len(x)
        self.total += x.sum(0)
        self.outer += x.T @ x

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        assert self.shift is not None
        assert self.total is not None
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased; UserError with fewer than two samples."""
        if self.count < 2 or self.total is None or self.outer is None:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        centre = self.total / self.count
        return (self.outer - self.count * torch.outer(centre, centre)) / (self.count - 1)


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

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric matrix
    S_a^(1/2) S_b S_a^(1/2), which are those of S_a S_b: safe for rank-deficient covariances.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features differ in size: {len(a.mean)} and {len(b.mean)}")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * _roots(values) @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root)
    trace = a.covariance.trace() + b.covariance.trace() - 2 * _roots(product).sum()
    return float((a.mean - b.mean).square().sum() + trace)


def _roots(values: Tensor) -> Tensor:
    """Square roots of eigenvalues. Those of a singular matrix come out as rounding, 1e-16 of the
    largest, whose root is 1e-8 of its root: over 2,000 features that adds up, so they are zero."""
    least = 10 * torch.finfo(values.dtype).eps * values.amax().clamp(min=0)
    return torch.where(values > least, values, torch.zeros_like(values)).sqrt()


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
