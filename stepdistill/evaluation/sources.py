"""What a Frechet distance is taken of: images, a model's samples, the digits, statistics."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from ..data.digits import NUM_CLASSES, digits, stratified_labels
from ..data.images import image_files
from ..errors import NonFiniteError, UserError
from ..metrics.features import Features, digest
from ..metrics.frechet import Moments, Statistics
from ..metrics.quality import digits_reference
from ..students import Student, load_student
from .images import files_moments
from .stored import SUFFIXES, Measured, Stored, load_statistics

DIGITS = "digits"
NUM_SAMPLES = 50_000  # of a model, unless told otherwise: the count of the published tables


@dataclass(frozen=True)
class Sampling:
    """How many images a source gives, and how they are made or read."""

    num: int | None = None
    seed: int = 0
    steps: int | None = None
    batch_size: int | None = None  # what suits the features
    skip_corrupt: bool = False
    device: str = "cpu"


class Source(Protocol):
    """One side of a comparison."""

    @property
    def of_digits(self) -> bool:
        """Whether its images are the digit classifier's."""

    def measure(self, features: Features) -> Measured:
        """Its Gaussian on ``features``."""


@dataclass(frozen=True)
class Digits:
    """All 1,797 real images of the built-in world."""

    of_digits = True

    def measure(self, features: Features) -> Measured:
        """On the digit classifier the same reference as ``quality.measure``."""
        record = {"kind": "digits", "path": DIGITS, "num_samples": len(digits()[0])}
        if features.name == DIGITS:
            return Measured(digits_reference()[1].statistics, record)
        moments = Moments()
        for x0 in torch.split(digits()[0], features.batch_size):
            moments.add(features(x0))
        return Measured(Statistics.of(moments), record)


@dataclass(frozen=True)
class Images:
    """Image files below a folder: all of them, or ``num`` drawn by the seed."""

    path: Path
    files: list[Path]
    how: Sampling

    of_digits = False

    def measure(self, features: Features) -> Measured:
        """Unreadable files stop it, or are counted where the sampling says so."""
        files = self.files
        if self.how.num is not None:
            files = sorted(random.Random(self.how.seed).sample(files, self.how.num))
        moments, skipped = files_moments(
            files, features, self.how.batch_size, self.how.skip_corrupt
        )
        if not moments.count:
            raise UserError(f"no image in {self.path} is readable")
        record = {
            "kind": "images",
            "path": str(self.path),
            "num_samples": moments.count,
            "seed": None if self.how.num is None else self.how.seed,
            "skipped": len(skipped),
        }
        return Measured(Statistics.of(moments), record)


@dataclass(frozen=True)
class Model:
    """A diffusers folder, sampled as ``load_student`` says; image i has the seed ``seed + i``."""

    path: Path
    student: Student
    how: Sampling

    @property
    def of_digits(self) -> bool:
        """By its shape: 8x8, one channel."""
        unet = getattr(self.student.pipeline, "unet", None)
        return unet is not None and (unet.config.in_channels, unet.config.sample_size) == (1, 8)

    @property
    def num(self) -> int:
        """Samples to draw."""
        return NUM_SAMPLES if self.how.num is None else self.how.num

    def labels(self, features: Features) -> list[int] | None:
        """In the proportions of the digits, where they are what is measured; else equally often."""
        classes = self.student.num_classes
        if classes is None:
            return None
        as_digits = features.name == DIGITS and classes == NUM_CLASSES
        proportions = digits_reference()[1].proportions if as_digits else torch.ones(classes)
        labels: list[int] = stratified_labels(proportions, self.num).tolist()
        return labels

    def measure(self, features: Features) -> Measured:
        """NonFiniteError names the seeds of a batch with NaN or Inf."""
        steps = self.student.steps(self.how.steps)
        self.student.pipeline.to(self.how.device)
        labels, moments = self.labels(features), Moments()
        batch_size = self.how.batch_size or features.batch_size
        begins = range(0, self.num, batch_size)
        for begin in tqdm(begins, desc=f"sampling {self.path.name}", disable=None):
            end = min(begin + batch_size, self.num)
            seeds = range(self.how.seed + begin, self.how.seed + end)
            own = None if labels is None else labels[begin:end]
            try:
                moments.add(features(self.student.sample(own, seeds, steps, len(seeds))))
            except NonFiniteError as error:
                last = seeds.stop - 1
                raise NonFiniteError(
                    f"{self.path}, seeds {seeds.start} to {last}: {error}"
                ) from error
        weights = sorted(p for p in self.path.rglob("*") if p.suffix in (".safetensors", ".bin"))
        record = {
            "kind": "model",
            "path": str(self.path),
            "num_samples": moments.count,
            "seed": self.how.seed,
            "steps": steps,
            "labels": None if labels is None else "stratified",
            "sha256": {p.relative_to(self.path).as_posix(): digest(p) for p in weights},
        }
        return Measured(Statistics.of(moments), record)


def open_source(name: str, how: Sampling) -> Source:
    """The source that ``name`` means, checked before any long work. UserError if there is none."""
    path = Path(name)
    if name == DIGITS:
        return Digits()
    if path.is_file() and path.suffix in SUFFIXES:
        return Stored(path, load_statistics(path))
    if _is_model(path):
        model = Model(path, load_student(path), how)
        if model.student.is_told_by_text:
            raise UserError(
                f"{path} is told by text, and fid has no prompts: sample it into a folder with "
                "stepdistill sample --prompt, and give that folder"
            )
        model.student.steps(how.steps)
        return model
    if _is_model(path / "student"):
        raise UserError(f"{path} is a run folder: name its student, {path / 'student'}")
    if path.is_dir():
        files = image_files(path)
        if how.num is not None and how.num > len(files):
            raise UserError(f"{path} holds {len(files)} images, fewer than num {how.num}")
        return Images(path, files, how)
    near = difflib.get_close_matches(name, [DIGITS], 1, 0.75)
    hint = f" Did you mean {DIGITS}?" if near else ""
    raise UserError(
        f"{name} is no image folder, no model folder, not {DIGITS}, and no statistics file "
        f"({', '.join(sorted(SUFFIXES))}).{hint}"
    )


def open_pair(a: str, b: str, how: Sampling) -> tuple[Source, Source]:
    """Both sides. A folder ``b`` is the reference and is used whole; two models draw apart.

    With the same noise on both sides a distance between models would come out too small, so the
    seeds of ``b`` follow those of ``a``.
    """
    first = open_source(a, how)
    second = open_source(b, how if _is_model(Path(b)) else replace(how, num=None))
    if isinstance(first, Model) and isinstance(second, Model):
        second = replace(second, how=replace(how, seed=how.seed + first.num))
    models = isinstance(first, Model) or isinstance(second, Model)
    if how.num is not None and not models and not isinstance(first, Images):
        raise UserError(f"num counts a model's samples or the images of a folder A: {a} is neither")
    if how.steps is not None and not models:
        raise UserError(f"steps are a model's: neither {a} nor {b} is one")
    return first, second


def _is_model(path: Path) -> bool:
    return (path / "model_index.json").is_file()
