"""One row a model, its number of steps and its settings: several seeds are one row.

So are students of ``stepdistill compare`` that were trained alike, each with a seed of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...errors import UserError
from ...metrics.metric_names import MEMORY, MS, MS_ONE, named
from .estimates import Estimate, from_error, over_seeds
from .labels import labels
from .records import Record
from .schema import finite

TRAINED = ("teacher", "method", "budget", "pairs", "settings")  # of a cell
SETTINGS = ("calls", "guidance_scale", "dtype", "plan", "image_size")  # of sampling


@dataclass(frozen=True)
class Row:
    """Records of one model with one setting, ``label`` tells it from the others; ``name`` does so
    beside its steps.

    ``values`` and ``speeds`` are its estimates by name, what was not measured is absent.
    """

    label: str
    name: str
    records: Sequence[Record]
    values: Mapping[str, Estimate]
    speeds: Mapping[str, Estimate]
    notes: Sequence[str]

    @property
    def steps(self) -> int | None:
        """Of the sampler."""
        return self.records[0].steps

    @property
    def calls(self) -> float | None:
        """Network calls an image."""
        return self.records[0].sampling.get("calls")

    @property
    def is_teacher(self) -> bool:
        """As the record says."""
        return self.records[0].model.get("role") == "teacher"

    @property
    def seeds(self) -> int | None:
        """Evaluations that went into it; None of images without seeds."""
        return len({seed for record in self.records for seed in record.seeds}) or None

    @property
    def measured_on(self) -> tuple[str, int | None] | None:
        """(device, batch size) of its times; None if there are none."""
        return next((_where(r) for r in self.records if r.part("speed")), None)

    @property
    def memory_of(self) -> str:
        """What its peak memory counts; "" where no record says."""
        told = (record.part("speed").get("memory_of") for record in self.records)
        return next((words for words in told if words), "")


def rows(records: Sequence[Record]) -> list[Row]:
    """The rows of a section's ``records``, teachers first, then by calls; equals as given.

    UserError for two records of one model, setting and seed.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_identity(record), []).append(record)
    for group in groups.values():
        _check_seeds(group)
    made = [
        _row(label, name, group)
        for (label, name), group in zip(labels(list(groups.values())), groups.values(), strict=True)
    ]
    return sorted(made, key=lambda row: (not row.is_teacher, row.calls or 0))


def estimate(records: Sequence[Record], metric: str) -> Estimate | None:
    """The value of ``metric`` over all seeds of ``records``; None if it was not measured.

    The interval is Student's over seeds that share no image; else 1.96 of the largest standard
    error that the records give, if all give one; else there is none. An error of 0, as of 100 % of
    the images, is none.
    """
    by_seed = {seed: value for r in records for seed, value in r.by_seed(metric).items()}
    seeds = sorted(seed for seed in by_seed if seed is not None)
    values = list(by_seed.values())
    if not values:
        return None
    spread = over_seeds(values)
    if spread.half is not None and not _shared(seeds, records[0].num):
        return spread
    errors = [r.part("errors").get(metric, math.nan) for r in records if r.by_seed(metric)]
    if all(finite(error) and error > 0 for error in errors):
        return from_error(values, max(errors))
    return Estimate(spread.value, None, spread.seeds)


def _row(label: str, name: str, records: Sequence[Record]) -> Row:
    names = sorted({metric for record in records for metric in record.metrics})
    found = {name: estimate(records, name) for name in names}
    values = {name: value for name, value in found.items() if value is not None}
    speeds, foreign = _speeds(records)
    notes = dict.fromkeys(note for r in records for note in r.content.get("notes") or ())
    computed = [*_notes(label, records, names), *foreign]
    return Row(label, name, records, values, speeds, [*notes, *computed])


def _notes(label: str, records: Sequence[Record], names: Sequence[str]) -> Iterator[str]:
    """What a reader must know of how a row was made."""
    for name in names:
        for record in records:
            value = record.content["metrics"].get(name)
            if value is not None and not finite(value):
                yield f"{named(name).label} of {record.place} is not a finite number."
    seeds, num = sorted({seed for record in records for seed in record.seeds}), records[0].num
    if num is not None and (shared := _shared(seeds, num)):
        yield (
            f"Seeds {shared[0]} and {shared[1]} of {label} share "
            f"{num - shared[1] + shared[0]:,} of {num:,} images, so that their spread is no "
            f"interval: evaluate with seeds at least {num:,} apart."
        )


def _speeds(records: Sequence[Record]) -> tuple[dict[str, Estimate], list[str]]:
    """The means over records on one device with one batch size, and a note if there are others."""
    timed = [record for record in records if record.part("speed")]
    same = [record for record in timed if _where(record) == _where(timed[0])]
    found: dict[str, Estimate] = {}
    for metric, key, unit in (
        (MS, "ms_per_image", 1),
        (MS_ONE, "ms_one_image", 1),
        (MEMORY, "peak_memory_bytes", 2**30),
    ):
        values = [r.part("speed")[key] / unit for r in same if finite(r.part("speed").get(key))]
        if values:  # a peak has no spread: it is the highest that was seen
            peak = metric is MEMORY
            found[metric.name] = Estimate(max(values)) if peak else over_seeds(values)
    if len(same) < len(timed):
        return found, [f"The times are those of {same[0].place}: the other seeds ran elsewhere."]
    return found, []


def _where(record: Record) -> tuple[str, int | None]:
    speed = record.part("speed")
    return str(speed.get("device") or "an unnamed device"), speed.get("batch_size")


def _shared(seeds: Sequence[int], num: int | None) -> tuple[int, int] | None:
    """The first two of ascending ``seeds`` nearer than ``num``: their images overlap."""
    near = [(a, b) for a, b in pairwise(seeds) if num is not None and b - a < num]
    return near[0] if near else None


def _check_seeds(records: Sequence[Record]) -> None:
    known: dict[int | None, Record] = {}
    for record in records:
        own: list[int | None] = [*sorted(record.seeds)]
        for seed in own or [None]:
            if seed in known:
                which = f"{known[seed].place} and {record.place} hold the same evaluation:"
                if seed is None:
                    path = record.model.get("path")
                    raise UserError(f"{which} the images of {path}: give one of them")
                raise UserError(
                    f"{which} {record.name}, steps {record.steps}, seed {seed}: give one "
                    "of them, or evaluate with another seed"
                )
            known[seed] = record


def _identity(record: Record) -> str:
    """A model by its weights, else its path, with its files of settings, what each call of it is
    given, and how it was sampled; numbers as 1.0, never 1. A student by how it was trained, where
    ``stepdistill compare`` did."""
    model = record.model
    own = model.get("sha256") or model.get("path") or model.get("name")
    if record.of_images:  # equal images under two names are two rows, as other images of one name
        own = [own, record.part("a").get("sha256"), record.seed is None]
    settings: list[Any] = [record.steps, *(record.sampling.get(name) for name in SETTINGS)]
    numbers = [float(value) if finite(value) else value for value in settings]
    more = [model.get(name) for name in ("config_sha256", "call")]  # its scheduler; size, frames
    if record.cell:
        own, more = [record.cell.get(name) for name in TRAINED], []
    return json.dumps([own, *numbers, *more], sort_keys=True)
