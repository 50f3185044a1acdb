"""A model as one side of a comparison: its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ...data.digits import NUM_CLASSES, stratified_labels
from ...errors import NonFiniteError, UserError
from ...metrics.features import Features
from ...metrics.quality import digits_reference
from ..models.subject import Subject, load_subject
from ..reading.measuring import Gathered, Measured, Reading, Want

DIGITS = "digits"  # the built-in world, and its extractor
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
    workers: int | None = None  # processes that decode; one for each core

    @property
    def reading(self) -> Reading:
        """Of image files."""
        return Reading(self.batch_size, self.skip_corrupt, self.workers)


@dataclass(frozen=True)
class Model:
    """A diffusers folder, sampled as ``subject`` says; image i has the seed ``seed + i``."""

    path: Path
    subject: Subject
    how: Sampling

    @classmethod
    def open(cls, path: Path, how: Sampling) -> Model:
        """Loaded. UserError for one that is told by text, or has no such number of steps."""
        subject = load_subject(str(path), how.steps, device=how.device)
        if subject.model.is_told_by_text:
            raise UserError(
                f"{path} is told by text, and here are no prompts: sample it into a folder with "
                "stepdistill sample --prompt, and give that folder"
            )
        return cls(path, subject, how)

    @property
    def of_digits(self) -> bool:
        """By its shape: 8x8, one channel."""
        unet = getattr(self.subject.model.pipeline, "unet", None)
        return unet is not None and (unet.config.in_channels, unet.config.sample_size) == (1, 8)

    @property
    def num(self) -> int:
        """Samples to draw."""
        return NUM_SAMPLES if self.how.num is None else self.how.num

    def labels(self, extractors: Sequence[Features]) -> list[int] | None:
        """In the proportions of the digits, where they are what is measured; else equally often."""
        classes = self.subject.model.num_classes
        if classes is None:
            return None
        as_digits = classes == NUM_CLASSES and any(own.name == DIGITS for own in extractors)
        proportions = digits_reference()[1].proportions if as_digits else torch.ones(classes)
        labels: list[int] = stratified_labels(proportions, self.num).tolist()
        return labels

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Sampled once for all. NonFiniteError names the seeds of a batch with NaN or Inf."""
        extractors = [want.features for want in wants]
        labels, gathered = self.labels(extractors), [Gathered(want) for want in wants]
        batch_size = self.how.batch_size or min(own.batch_size for own in extractors)
        begins = range(0, self.num, batch_size)
        for begin in tqdm(begins, desc=f"sampling {self.path.name}", disable=None):
            end = min(begin + batch_size, self.num)
            seeds = range(self.how.seed + begin, self.how.seed + end)
            own = None if labels is None else labels[begin:end]
            try:
                x0 = self.subject.sample(own, seeds)
                for each in gathered:
                    each.add(each.want.features(x0))
            except NonFiniteError as error:
                last = seeds.stop - 1
                raise NonFiniteError(
                    f"{self.path}, seeds {seeds.start} to {last}: {error}"
                ) from error
        record = {
            **self.subject.record(),
            "kind": "model",
            "num_samples": self.num,
            "seed": self.how.seed,
            "steps": self.subject.steps,
            "guidance_scale": self.subject.guidance_scale,
            "dtype": self.subject.dtype,
            "batch_size": batch_size,
            "labels": None if labels is None else "stratified",
        }
        return [own.measured(record, self.subject.notes) for own in gathered]
