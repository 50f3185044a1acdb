"""The loop of an evaluation: samples by seed, their features and scores, one file a shard.

A process takes every R-th shard of those that are missing. A stop is noted in the work folder, so
that all processes leave after the shard they are in, whoever was told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...errors import NonFiniteError, StepDistillError, UserError
from ...metrics.diversity import mean_over_pairs
from ...metrics.features import Features, Pixels, Scorer, eight_bit
from ...signals import StopSignals
from ..measures.groups import GROUP, Groups
from ..models.subject import Subject
from ..models.told import Told
from ..reading.blocks import cores
from .work import NO_REPEAT, Shard, WorkFolder


@dataclass(frozen=True)
class Order:
    """What is sampled, what it is seen and scored by, and where the images go.

    Sample i of all has the seed ``seed`` + i and the place i mod ``num`` of its repeat. The
    first ``shown`` samples are kept in ``samples``, all of them in ``images`` if it is a folder.
    """

    num: int
    seed: int
    repeats: int
    batch_size: int
    told: Told
    views: Mapping[str, Features]
    scorers: Mapping[str, Scorer]
    image_size: int | None
    samples: Path
    shown: int
    images: Path | None = None

    def seeds(self, rows: range) -> range:
        """Of the samples ``rows``."""
        return range(self.seed + rows.start, self.seed + rows.stop)

    def told_to(self, rows: range) -> list[Any] | None:
        """What they are told."""
        return self.told.batch([i % self.num for i in rows], self.seeds(rows))


@dataclass
class Engine:
    """One process's part of an evaluation."""

    subject: Subject
    order: Order
    work: WorkFolder
    state: PartialState
    groups: Groups | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(cores()))

    def run(self, shards: Sequence[Shard]) -> bool:
        """Do this process's part of ``shards``; False if it was asked to stop before the end.

        NonFiniteError names the seeds of a batch with NaN or Inf. StepDistillError where a GPU has
        no room for a batch.
        """
        rank, ranks = self.state.process_index, self.state.num_processes
        own = [shard for shard in shards[rank::ranks] if not self.work.file(shard.number).is_file()]
        total = sum(shard.end - shard.begin for shard in own if shard.repeat != NO_REPEAT)
        stop, part = self.work.stop, f" (1 of {ranks} processes)" if ranks > 1 else ""
        with (
            StopSignals() as signals,
            tqdm(
                total=total,
                desc=f"sampling{part}",
                unit="img",
                disable=rank > 0,
                mininterval=0.5 if sys.stderr.isatty() else 30,  # seconds; a log takes few lines
            ) as bar,
        ):
            for shard in own:
                try:
                    if shard.repeat == NO_REPEAT:
                        self._group(shard)
                    else:
                        self._shard(shard, bar)
                except torch.OutOfMemoryError as error:
                    raise StepDistillError(
                        f"no memory for {self.order.batch_size} samples at a time: remove "
                        f"{self.work.path} and begin again with a smaller --batch_size, --dtype "
                        "bfloat16, or a smaller size"
                    ) from error
                if signals.noted:
                    stop.touch()
                if stop.exists():
                    return False
        return True

    def _shard(self, shard: Shard, bar: tqdm[Any]) -> None:
        parts: dict[str, list[Tensor]] = {}
        seconds: list[tuple[int, float]] = []
        height = width = peak = 0
        for rows in shard.batches(self.order.batch_size):
            told = self.order.told_to(rows)
            self._forget_peak()
            began = self._now()
            x0 = self.subject.sample(told, self.order.seeds(rows))
            seconds.append((len(rows), self._now() - began))
            peak = max(peak, self._peak_bytes())
            pixels = self._pixels(x0, rows)
            height, width = pixels.shape[1:3]
            for name, found in self._seen(pixels, told).items():
                parts.setdefault(name, []).append(found.float().cpu())
            self._keep(pixels, rows)
            bar.update(len(rows))
        facts = {"seconds": seconds, "image_size": [height, width], "peak_bytes": peak}
        self.work.write(shard.number, {k: torch.cat(v) for k, v in parts.items()}, facts)

    def _group(self, shard: Shard) -> None:
        """Several samples of one prompt, and their mean distance."""
        assert self.groups is not None
        rows, place = range(shard.begin, shard.end), self.groups.place(shard)
        seeds = self.order.seeds(rows)
        told = self.order.told.batch([place] * len(rows), seeds)
        pixels = self._pixels(self.subject.sample(told, seeds), rows)
        distance = self.groups.distance
        inputs = self._prepared(distance.prepare, _colour(pixels))
        found = mean_over_pairs(distance.network, inputs)[None]
        self.work.write(shard.number, {GROUP: found}, {"seconds": [], "told": told})

    def _pixels(self, x0: Tensor, rows: range) -> Pixels:
        """8-bit images (B, H, W, C). UserError if they are not of the protocol's size."""
        try:
            pixels = eight_bit(x0)
        except NonFiniteError as error:
            seeds = self.order.seeds(rows)
            raise NonFiniteError(
                f"{self.subject.source}, seeds {seeds.start} to {seeds.stop - 1}: {error}"
            ) from error
        side = self.order.image_size
        if side is not None and pixels.shape[1:3] != (side, side):
            raise UserError(
                f"this protocol measures images of {side}x{side} pixels, and {self.subject.source} "
                f"samples {pixels.shape[2]}x{pixels.shape[1]}: take another protocol, or custom"
            )
        return pixels

    def _seen(self, pixels: Pixels, told: list[Any] | None) -> dict[str, Tensor]:
        """What each view and scorer makes of a batch."""
        colour = _colour(pixels)
        found = {}
        for name, features in self.order.views.items():
            given = pixels if features.mode == "L" else colour
            found[name] = features.network(self._prepared(features.prepare, given))
        for name, scorer in self.order.scorers.items():
            inputs = self._prepared(scorer.prepare, colour)
            found[name] = scorer.network(inputs, [str(prompt) for prompt in told or ()])
        return found

    def _prepared(self, prepare: Any, pixels: Pixels) -> Tensor:
        return torch.stack(list(self.pool.map(prepare, pixels)))

    def _keep(self, pixels: Pixels, rows: range) -> None:
        """Write the images that are to be shown, and all where they were asked for."""
        for i, image in zip(rows, pixels, strict=True):
            if self.order.images is not None:
                save_png(image, self.order.images / f"{i:06d}.png")
            if i < self.order.shown:
                save_png(image, self.order.samples / f"{i:06d}.png")

    def _now(self) -> float:
        if self.state.device.type == "cuda":
            torch.cuda.synchronize(self.state.device)
        return time.perf_counter()

    def _forget_peak(self) -> None:
        if self.state.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.state.device)

    def _peak_bytes(self) -> int:
        """The most that a GPU has held since it was forgotten; 0 elsewhere."""
        if self.state.device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated(self.state.device)


def _colour(pixels: Pixels) -> Pixels:
    """Grey images (B, H, W, 1) with three equal channels, others as they are."""
    return pixels if pixels.shape[3] == 3 else np.repeat(pixels, 3, axis=3)


def save_png(pixels: Pixels, path: Path) -> None:
    """One image (H, W, C). StepDistillError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
    except OSError as error:
        raise StepDistillError(f"could not write {path}: {error}") from error
