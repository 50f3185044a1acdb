"""What a distance is taken of: images, a model's samples, the digits, statistics."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from ...data.digits import digits, digits_sha256
from ...errors import UserError
from ...metrics.quality import digits_reference
from ..reading.archives import Pictures, open_pictures
from ..reading.measuring import Gathered, Measured, Want, measure_images
from ..references.reference import OfBoth, OfImages
from ..references.stored import SUFFIXES, Stored, is_stored
from .samples import DIGITS, Model, Sampling


class Source(Protocol):
    """One side of a comparison."""

    @property
    def of_digits(self) -> bool:
        """Whether its images are the digit classifier's."""

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Its Gaussian on each extractor, and the features where they are wanted."""


@dataclass(frozen=True)
class Digits:
    """All 1,797 real images of the built-in world."""

    of_digits = True

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """On the digit classifier the same reference as ``quality.measure``."""
        return [self._measured(want) for want in wants]

    def _measured(self, want: Want) -> Measured:
        count = len(digits()[0])
        record = {"kind": "digits", "path": DIGITS, "num_samples": count, "sha256": digits_sha256()}
        if want.features.name == DIGITS:
            reference = digits_reference()[1]
            kept = reference.features if want.keep else None
            return Measured(reference.statistics, record, kept)
        gathered = Gathered(want)
        for x0 in torch.split(digits()[0], want.features.batch_size):
            gathered.add(want.features(x0))
        return gathered.measured(record)


@dataclass(frozen=True)
class Images:
    """Images of a folder, a zip, a tar or an .npz: all, or ``num`` drawn by the seed."""

    pictures: Pictures
    how: Sampling

    of_digits = False

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Unreadable images stop it, or are counted where the sampling says so."""
        indices: Sequence[int] = range(len(self.pictures))
        seed = None
        if self.how.num is not None:
            seed = self.how.seed
            indices = sorted(random.Random(seed).sample(indices, self.how.num))
        found = measure_images(self.pictures, indices, wants, self.how.reading)
        return [replace(own, record={**own.record, "seed": seed}) for own in found]


def open_source(name: str, how: Sampling) -> Source:
    """The source that ``name`` means, checked before any long work. UserError if there is none."""
    path = Path(name)
    if name == DIGITS:
        return Digits()
    if _is_model(path):
        return Model.open(path, how)
    if _is_model(path / "student"):
        raise UserError(f"{path} is a run folder: name its student, {path / 'student'}")
    pictures = open_pictures(path)
    if is_stored(path):
        stored = Stored.open(path)
        return stored if pictures is None else OfBoth(stored, OfImages(pictures, how.reading))
    if pictures is not None:
        if how.num is not None and how.num > len(pictures):
            raise UserError(f"{path} holds {len(pictures)} images, fewer than num {how.num}")
        return Images(pictures, how)
    near = difflib.get_close_matches(name, [DIGITS], 1, 0.75)
    hint = f" Did you mean {DIGITS}?" if near else ""
    raise UserError(
        f"{name} is no image folder, no .zip, .tar or .npz of images, no model folder, not "
        f"{DIGITS}, and no statistics file ({', '.join(sorted(SUFFIXES))}).{hint}"
    )


def open_pair(a: str, b: str, how: Sampling) -> tuple[Source, Source]:
    """Both sides. Images ``b`` are the reference and are used whole; two models draw apart.

    With the same noise on both sides a distance between models would come out too small, so the
    seeds of ``b`` follow those of ``a``.
    """
    first = open_source(a, how)
    second = open_source(b, how if _is_model(Path(b)) else replace(how, num=None))
    if isinstance(first, Model) and isinstance(second, Model):
        second = replace(second, how=replace(how, seed=how.seed + first.num))
    models = isinstance(first, Model) or isinstance(second, Model)
    if how.num is not None and not models and not isinstance(first, Images):
        raise UserError(
            f"num counts a model's samples or the images of a folder or archive A: {a} is neither"
        )
    if how.steps is not None and not models:
        raise UserError(f"steps are a model's: neither {a} nor {b} is one")
    return first, second


def _is_model(path: Path) -> bool:
    return (path / "model_index.json").is_file()
