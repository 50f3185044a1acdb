"""Statistics in files: our own .safetensors, and the .npz that clean-fid and EDM write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError

from ..errors import UserError
from ..metrics.extractors.digits import DIGIT_FEATURES
from ..metrics.features import Features, digest
from ..metrics.frechet import Statistics

SUFFIXES = {".safetensors", ".npz"}


def load_statistics(file: Path) -> Statistics:
    """The Gaussian in ``file``. UserError if it is damaged or holds something else.

    An .npz holds ``mu`` (D,) and ``sigma`` (D, D), and not how many samples made them: count 0.
    """
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                mean, covariance = (torch.from_numpy(arrays[k]).double() for k in ("mu", "sigma"))
            statistics = Statistics(mean, covariance, count=0)
        else:
            statistics = Statistics.load(file)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        BadZipFile,
        SafetensorError,
    ) as error:
        raise UserError(f"{file} holds no statistics, or is damaged: {error}") from error
    size = statistics.mean.shape
    if len(size) != 1 or statistics.covariance.shape != (*size, *size):
        shapes = f"{tuple(size)} and {tuple(statistics.covariance.shape)}"
        raise UserError(f"{file}: a mean (D,) and a covariance (D, D) do not have shapes {shapes}")
    if not (statistics.mean.isfinite().all() and statistics.covariance.isfinite().all()):
        raise UserError(f"{file} holds NaN or Inf")
    return statistics


@dataclass(frozen=True)
class Measured:
    """The Gaussian of a source's features, and where it came from, in JSON form."""

    statistics: Statistics
    record: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """Statistics that were made before."""

    path: Path
    statistics: Statistics

    @property
    def of_digits(self) -> bool:
        """By the number of features."""
        return len(self.statistics.mean) == DIGIT_FEATURES

    def measure(self, features: Features | None) -> Measured:
        """UserError if they are of other ``features``; two files are compared without any."""
        size = len(self.statistics.mean)
        if features is not None and size != features.size:
            raise UserError(
                f"{self.path} holds statistics of {size} features, and {features.name} has "
                f"{features.size}: they were made with other features"
            )
        count = self.statistics.count or None
        record = {"kind": "statistics", "path": str(self.path), "num_samples": count}
        return Measured(self.statistics, {**record, "sha256": digest(self.path)})
