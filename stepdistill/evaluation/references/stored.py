"""Statistics in files: our own .safetensors, and what clean-fid, EDM, EDM2, ADM and torch-fidelity
write, .npz, .pkl and .pt with ``mu`` and ``sigma``.

Ours say of which extractor they are, and are refused to any other; of the rest nothing but the
number of features is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UserError
from ...files import save_whole
from ...metrics.extractors.digits import DIGIT_FEATURES
from ...metrics.features import Features, digest
from ...metrics.frechet import Statistics, few_samples
from ..reading.arrays import MEMBER, members
from ..reading.measuring import Measured, Want
from .pickled import load_arrays

SUFFIXES = {".safetensors", ".npz", ".pkl", ".pt"}
FORMAT = "stepdistill reference 1"
ALONE = ""  # the part of a file that holds one Gaussian
# what a file of ours says of its extractor, and what that is
TOLD = {"extractor": "extractor", "extractor_sha256": "weights", "resize": "preprocessing"}
# EDM2's, by how the names of their extractors begin: its Inception resizes as TensorFlow does
PARTS = {"inception-tf": "fid", "dinov2": "fd_dinov2"}


def check_one_each(found: Mapping[str, Measured]) -> None:
    """UserError where one file that does not say of which extractor it is stands for two of those
    that references were ``found`` for."""
    served: dict[str, str] = {}
    for name, own in found.items():
        path = own.record["path"]
        if own.record.get("kind") != "statistics" or own.record["extractor"] is not None:
            continue
        if path in served:
            raise UserError(
                f"{path} holds one mean and covariance and does not say of which extractor, so it "
                f"cannot stand for both {served[path]} and {name}: measure one of them, or give "
                "the images"
            )
        served[path] = name


def is_stored(path: Path) -> bool:
    """Whether it is, by its name and for an .npz by its arrays, a file of statistics."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    if path.suffix != ".npz":
        return True
    held = members(path)
    return "mu" in held or MEMBER not in held


def save_reference(
    path: Path, measured: Measured, features: Features, source: Mapping[str, Any]
) -> None:
    """Write the Gaussian, the features where they were kept, and of what they are.

    Written aside and renamed: an older file stays until the new one is whole. UserError where the
    folder cannot be written to.
    """
    tensors = {
        "mean": measured.statistics.mean,
        "covariance": measured.statistics.covariance,
        "count": torch.tensor(measured.statistics.count),
    }
    if measured.features is not None:
        tensors["features"] = measured.features
    told = {
        "format": FORMAT,
        "extractor": features.name,
        "extractor_sha256": features.sha256,
        "resize": features.resize,
        "num_samples": str(measured.statistics.count),
        "source": json.dumps(source),
        "version": version("stepdistill"),
    }
    save_whole(tensors, path, told)


@dataclass(frozen=True)
class Stored:
    """Statistics that were made before. ``parts`` are its Gaussians, by EDM2's names, or ALONE;
    ``told`` is what the file says of them."""

    path: Path
    parts: Mapping[str, Statistics]
    told: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Stored:
        """Read and check. UserError if it is damaged or holds something else."""
        try:
            parts, told = _read(path)
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            TypeError,
            BadZipFile,
            SafetensorError,
        ) as error:
            raise UserError(f"{path} holds no statistics, or is damaged: {error}") from error
        for statistics in parts.values():
            _check(path, statistics)
        return cls(path, parts, told)

    @property
    def of_digits(self) -> bool:
        """By the number of features."""
        return any(len(own.mean) == DIGIT_FEATURES for own in self.parts.values())

    def statistics(self, features: Features | None) -> Statistics:
        """Those of ``features``; without any, the only ones. UserError if they are of others."""
        statistics = self._part(features)
        if features is None:
            return statistics
        self._check_told(features)
        if features.of_patches and "resize" not in self.told:
            raise UserError(
                f"{self.path} does not say of which preprocessing it is, and a patch of each image "
                "is measured: give the images as a reference"
            )
        size = len(statistics.mean)
        if size != features.size:
            raise UserError(
                f"{self.path} holds statistics of {size} features, and {features.name} has "
                f"{features.size}: they were made with other features"
            )
        return statistics

    def features(self, features: Features) -> Tensor | None:
        """The features (N, D) themselves, where the file keeps them. UserError as above."""
        self.statistics(features)
        if self.path.suffix != ".safetensors":
            return None
        with safe_open(self.path, "pt") as file:
            if "features" not in file.keys():  # noqa: SIM118  it is no dictionary
                return None
            kept: Tensor = file.get_tensor("features")
        size = (self.statistics(features).count, features.size)
        if kept.shape != size or not kept.isfinite().all():
            raise UserError(
                f"{self.path} keeps features of shape {tuple(kept.shape)} and not {size}, or NaN "
                "or Inf: make it again with stepdistill eval reference"
            )
        return kept

    def record(self) -> dict[str, Any]:
        """JSON form."""
        counts = {own.count for own in self.parts.values()}
        return {
            "kind": "statistics",
            "path": str(self.path),
            "num_samples": max(counts) or None,
            "sha256": digest(self.path),
            "extractor": self.told.get("extractor", None if ALONE in self.parts else "named in it"),
        }

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """As a side of a comparison; features where they are wanted and kept."""
        return [
            self.measured(want.features, self.features(want.features) if want.keep else None)
            for want in wants
        ]

    def measured(self, features: Features | None, kept: Tensor | None = None) -> Measured:
        """The Gaussian of ``features``; two files are compared without any."""
        statistics = self.statistics(features)
        few = few_samples(statistics.count, len(statistics.mean))
        notes = [f"{self.path}: {few}"] if few else []
        if features is not None and "resize" not in self.told:
            notes.append(f"{self.path} does not say of which extractor and preprocessing it is")
        return Measured(statistics, self.record(), kept, tuple(notes))

    def check_alike(self, other: Stored) -> None:
        """UserError where both files say of which extractor they are, and it is not one."""
        for key, what in TOLD.items():
            own, its = self.told.get(key), other.told.get(key)
            if None not in (own, its) and own != its:
                raise UserError(
                    f"{self.path} and {other.path} were not made with the same {what} ({own}, and "
                    f"{its}): make one of them again with stepdistill eval reference"
                )

    def _part(self, features: Features | None) -> Statistics:
        if ALONE in self.parts:
            return self.parts[ALONE]
        name = "inception-tf" if features is None else features.name
        for begin, part in PARTS.items():
            if name.startswith(begin) and part in self.parts:
                return self.parts[part]
        raise UserError(
            f"{self.path} holds {' and '.join(self.parts)}, and no statistics of {name}: measure "
            f"with {' or '.join(PARTS)}"
        )

    def _check_told(self, features: Features) -> None:
        """Absent metadata, as of other programs' files, are no contradiction."""
        of = (features.name, features.sha256, features.resize)
        for (key, what), own in zip(TOLD.items(), of, strict=True):
            made = self.told.get(key, own)
            if made != own:
                raise UserError(
                    f"{self.path} is a reference of another {what} ({made}, and this is {own}): "
                    "make one with stepdistill eval reference, or measure as it was made"
                )


def _read(path: Path) -> tuple[dict[str, Statistics], dict[str, str]]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            mean, covariance, count = (
                file.get_tensor(name) for name in ("mean", "covariance", "count")
            )
        return {ALONE: Statistics(mean, covariance, int(count))}, told
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {ALONE: _gaussian({name: arrays[name] for name in ("mu", "sigma")}, 0)}, {}
    held = load_arrays(path)
    count = int(held.get("num_images", 0)) if isinstance(held, Mapping) else 0
    if "mu" in held:
        return {ALONE: _gaussian(held, count)}, {}
    parts = {name: _gaussian(held[name], count) for name in PARTS.values() if name in held}
    if not parts:
        raise KeyError("mu")
    return parts, {}


def _gaussian(arrays: Mapping[str, Any], count: int) -> Statistics:
    mean, covariance = (torch.from_numpy(np.array(arrays[k], np.float64)) for k in ("mu", "sigma"))
    return Statistics(mean, covariance, count)


def _check(path: Path, statistics: Statistics) -> None:
    size = statistics.mean.shape
    if len(size) != 1 or statistics.covariance.shape != (*size, *size):
        shapes = f"{tuple(size)} and {tuple(statistics.covariance.shape)}"
        raise UserError(f"{path}: a mean (D,) and a covariance (D, D) do not have shapes {shapes}")
    if not (statistics.mean.isfinite().all() and statistics.covariance.isfinite().all()):
        raise UserError(f"{path} holds NaN or Inf")
