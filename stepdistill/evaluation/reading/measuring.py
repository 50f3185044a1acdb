"""Features of images gathered into what metrics take: a Gaussian, and the features where needed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import StepDistillError, UserError
from ...metrics.features import Features
from ...metrics.frechet import Moments, Statistics, few_samples
from .archives import Pictures, content_sha256
from .blocks import read


@dataclass(frozen=True)
class Want:
    """An extractor, and whether its features are kept beside their Gaussian."""

    features: Features
    keep: bool = False


@dataclass(frozen=True)
class Measured:
    """The Gaussian of a source's features, and in JSON form where they came from; the features
    (N, D) if kept; sentences about when the number may not be compared."""

    statistics: Statistics
    record: dict[str, Any]
    features: Tensor | None = None
    notes: tuple[str, ...] = ()


class Gathered:
    """Moments of streamed features; where kept, also all of them in float32, in a temporary file
    that is mapped into memory: no more is held than the machine has room for."""

    def __init__(self, want: Want) -> None:
        self.want = want
        self.moments = Moments()
        self.file = tempfile.TemporaryFile() if want.keep else None  # noqa: SIM115  until measured

    def add(self, features: Tensor) -> None:
        """Add features (B, D)."""
        self.moments.add(features)
        if self.file is not None:
            self.file.write(features.detach().cpu().float().contiguous().numpy().data)

    def measured(self, record: dict[str, Any], notes: Sequence[str] = ()) -> Measured:
        """Everything added. UserError for fewer than two rows."""
        if self.moments.count < 2:
            path = record["path"]
            raise UserError(f"{path}: a covariance needs at least 2 samples, got 1")
        statistics = Statistics.of(self.moments)
        few = few_samples(statistics.count, len(statistics.mean))
        said = (*notes, *([f"{record['path']}: {few}"] if few else []))
        if self.file is None:
            return Measured(statistics, record, None, said)
        self.file.flush()
        shape = (self.moments.count, len(statistics.mean))
        with self.file:
            rows = np.memmap(self.file, np.float32, "c", 0, shape)
        return Measured(statistics, record, torch.from_numpy(rows), said)


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    batch_size: int | None = None  # what suits the extractors
    skip_corrupt: bool = False
    workers: int | None = None  # processes that decode; one for each core


AS_IT_SUITS = Reading()


def measure_images(
    pictures: Pictures,
    indices: Sequence[int],
    wants: Sequence[Want],
    how: Reading,
    hashed: str | None = None,
) -> list[Measured]:
    """What each extractor makes of those images, each decoded once; ``hashed`` is their hash, if it
    is known.

    UserError names the first unreadable image, unless they are to be skipped, and says where none
    is left. Transparent images are noted.
    """
    gathered = [Gathered(want) for want in wants]
    extractors = [want.features for want in wants]
    batch_size = how.batch_size or min(e.batch_size for e in extractors)
    skipped: list[str] = []
    transparent = 0
    blocks = read(pictures, indices, extractors, batch_size, how.skip_corrupt, how.workers)
    with tqdm(total=len(indices), desc=pictures.path.name, unit="image", disable=None) as bar:
        for block in blocks:
            skipped += block.skipped
            transparent += block.transparent
            for own, inputs in zip(gathered, block.inputs, strict=bool(block.inputs)):
                own.add(through(own.want.features, inputs))
            bar.update((len(block.inputs[0]) if block.inputs else 0) + len(block.skipped))
    count = gathered[0].moments.count
    if not count:
        raise UserError(f"no image in {pictures.path} is readable")
    record = {
        "kind": "images",
        "path": str(pictures.path),
        "num_samples": count,
        "skipped": len(skipped),
        "sha256": hashed or content_sha256(pictures),
    }
    notes = [see_through(pictures.path, transparent)] if transparent else []
    return [own.measured(record, notes) for own in gathered]


def see_through(path: Path, count: int) -> str:
    """The sentence about images with an alpha channel."""
    images = "image is" if count == 1 else "images are"
    return (
        f"{path}: {count:,} {images} transparent in places; alpha channels are dropped, as "
        "clean-fid drops them, and the colours beneath are measured"
    )


def through(features: Features, inputs: Tensor) -> Tensor:
    """``inputs`` through the network. StepDistillError where a GPU has no room for them."""
    try:
        return features.network(inputs)
    except torch.OutOfMemoryError as error:
        raise StepDistillError(
            f"no memory for {len(inputs)} images at a time through {features.name}: give a "
            f"batch_size below {len(inputs)}"
        ) from error
