"""The evaluation of one model by one protocol, on any number of processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import UserError
from ...files import check_room
from ...metrics.scorers import scorer
from ...metrics.scorers.lpips_distance import lpips_distance
from ..measures.groups import EACH, PROMPTS, Groups
from ..measures.image_metrics import check_extractor
from ..measures.measure import (
    Frechet,
    Measure,
    PromptDiversity,
    Values,
    check_references,
    check_samples,
)
from ..models.subject import Subject
from ..protocols import Protocol
from ..protocols.protocol import Reference
from ..reading.measuring import Measured
from .choices import Asked, chosen, compared, opened, replicates_of, told_by
from .engine import Order
from .evidence import Shards
from .work import Shard, WorkFolder, cut

SHOWN = 16  # samples that are kept beside the record, for the grids of a comparison


@dataclass(frozen=True)
class Evaluation:
    """Everything that was asked for, checked: what can be found wrong before the first sample."""

    subject: Subject
    protocol: Protocol
    asked: Asked
    measures: Sequence[Measure]
    order: Order
    given: Sequence[Reference]
    groups: Groups | None
    device: torch.device

    @classmethod
    def of(
        cls, subject: Subject, protocol: Protocol, asked: Asked, device: torch.device
    ) -> Evaluation:
        """UserError for what cannot be measured, or is missing."""
        measures = chosen(protocol, asked.metrics)
        for measure in measures:
            if isinstance(measure, Frechet):
                check_extractor([measure.name], measure.seen.extractor)
        told, num = told_by(protocol, subject, asked)
        views = {m.view.key: m.view for m in measures if m.view is not None}
        scorers = [m.scorer for m in measures if m.scorer is not None]
        if scorers and not subject.model.is_told_by_text:
            raise UserError(f"{scorers[0]} scores images and prompts, {subject.source} has none")
        order = Order(
            num=num,
            seed=asked.seed,
            repeats=asked.repeats,
            batch_size=asked.batch_size,
            told=told,
            views={k: v.open(asked.weights.get(v.extractor), device) for k, v in views.items()},
            scorers={s: scorer(s, asked.weights, device) for s in scorers},
            image_size=protocol.image_size,
            samples=asked.output.with_name(asked.output.name + ".samples"),
            shown=min(SHOWN, num),
            images=asked.images,
        )
        check_samples(measures, num, order.views, "--num")
        given = opened(protocol, asked, measures)
        groups = groups_of(measures, order, asked.weights, device)
        return cls(subject, protocol, asked, measures, order, given, groups, device)

    @property
    def shards(self) -> list[Shard]:
        """Of all repeats, then of the groups of one prompt."""
        found = cut(self.order.num, self.order.repeats, self.order.batch_size)
        return found if self.groups is None else found + self.groups.shards()

    def repeat(self, number: int, references: Mapping[str, Measured]) -> Shards:
        """What one repeat has left, and what it is compared with."""
        own = [shard for shard in self.shards if shard.repeat == number]
        apart = self.groups.shards() if self.groups is not None else []
        kept = frozenset(m.seen.key for m in self.measures if m.keeps[0])
        return Shards(self.work, self.order, own, references, kept, apart)

    @property
    def work(self) -> WorkFolder:
        """Beside the output, until the record is written."""
        return WorkFolder(self.asked.parts)

    def measure_references(self) -> dict[str, Measured]:
        """What is compared with, by the key of its view. UserError for a view without one."""
        found = compared(self.measures, self.given, self.order.views)
        check_references(self.measures, found)
        return found

    def begin(self) -> None:
        """Before the first sample: room for the features, an empty folder for the images, none of
        samples of before.

        UserError for a folder of images that holds something. A folder of work that is gone on with
        has its own images.
        """
        if self.work.begun.exists():
            return
        sizes = [features.size for features in self.order.views.values()]
        room = 4 * sum(sizes) * self.order.num * self.order.repeats
        check_room(
            self.work.path, room, "the features of all samples, until the record is written,"
        )
        images, samples = self.order.images, self.order.samples
        if images is not None and images.exists() and (images.is_file() or any(images.iterdir())):
            raise UserError(f"{images} holds something already: give another folder as --images")
        if samples.is_dir():
            shutil.rmtree(samples)
        self.work.begun.touch()

    def check_images(self) -> None:
        """UserError where images that were written are gone, or other ones have come."""
        expected = {
            self.order.samples: self.order.shown,
            **(
                {self.order.images: self.order.num * self.order.repeats}
                if self.order.images
                else {}
            ),
        }
        for folder, count in expected.items():
            there = len(list(folder.glob("*.png")))
            if there != count:
                raise UserError(
                    f"{folder} holds {there} images, and {count} were written: it was changed "
                    f"meanwhile; remove {self.work.path} and begin again"
                )

    def found(self, references: Mapping[str, Measured]) -> Found:
        """What the measures say of each repeat."""
        repeats = [self.repeat(number, references) for number in range(self.order.repeats)]
        values = [_all(m.values(evidence) for m in self.measures) for evidence in repeats]
        replicates = replicates_of(self.protocol, self.asked)
        errors = _all(m.errors(repeats[0], replicates) for m in self.measures)
        details = {m.name: how for m in self.measures if (how := m.details(repeats[0]))}
        on = {name: m.on for m in self.measures if m.on for name in m.values(repeats[0])}
        return Found(values, errors, details, on)


@dataclass(frozen=True)
class Found:
    """The values of each repeat; of the first, standard errors, how values were had, and by the
    name of a value the key of the view or scorer that it was measured on.
    """

    repeats: list[Values]
    errors: Values
    details: dict[str, Any]
    measured_on: dict[str, str]


def _all(parts: Iterable[Values]) -> Values:
    return {name: value for part in parts for name, value in part.items()}


def groups_of(
    measures: Sequence[Measure], order: Order, weights: Mapping[str, str], device: torch.device
) -> Groups | None:
    """Where a measure asks for them, with LPIPS as the distance."""
    if not any(isinstance(measure, PromptDiversity) for measure in measures):
        return None
    last = cut(order.num, order.repeats, order.batch_size)[-1]
    distance = lpips_distance(weights.get("lpips"), device)
    first: dict[str, int] = {}  # prompt -> its first place
    for place, told in enumerate(order.told_to(range(order.num)) or ()):
        first.setdefault(json.dumps(told), place)
    return Groups([*first.values()][:PROMPTS], EACH, distance, last)
