"""Two sets of images compared by any metrics, each image decoded once, with the record of it."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import StepDistillError, UserError
from ..files import flush
from ..metrics.extractors import unpublished
from ..metrics.features import Features
from .image_metrics import Compared, Metric
from .measuring import Measured, Want
from .models import Model
from .provenance import commit, versions
from .sources import Digits, Source
from .stored import Stored
from .views import View

FORMAT = 1


@dataclass(frozen=True)
class Look:
    """What a metric looks through, opened."""

    view: View
    features: Features


def looks(
    metrics: Mapping[str, Metric],
    chosen: str,
    weights: str | None,
    device: str,
    size: int | None = None,
    patch: int | None = None,
) -> dict[str, Look]:
    """By the name of each metric; metrics that look through the same share it. ``weights`` are
    those of ``chosen``, others are found."""
    opened: dict[View, Look] = {}
    found = {}
    for name, metric in metrics.items():
        view = metric.view(chosen, size, patch)
        if view not in opened:
            own = weights if view.extractor == chosen else None
            opened[view] = Look(view, view.open(own, device))
        found[name] = opened[view]
    return found


def compare_images(
    pair: tuple[Source, Source],
    metrics: Mapping[str, Metric],
    through: Mapping[str, Look],
    seed: int = 0,
) -> dict[str, Any]:
    """The record of ``metrics`` of A and B. Each side is read once for all extractors.

    UserError for what a side cannot give: statistics of other extractors, or without features.
    """
    began = time.perf_counter()
    views = list(dict.fromkeys(look.view for look in through.values()))
    wants = [_wants(view, metrics, through) for view in views]
    measured: dict[int, list[Measured]] = {}
    # files before images before samples: what is wrong with one is said before the long work
    for side in sorted((0, 1), key=lambda own: work(pair[own])):
        measured[side] = pair[side].measure([want[side] for want in wants])
        for own, want in zip(measured[side], wants, strict=True):
            if want[side].keep and own.features is None:
                raise UserError(_needs_features(own, metrics, through, want[side].features))
    values: dict[str, float] = {}
    details = {}
    both = {
        view: Compared(a, b, wants[i][0].features, seed)
        for i, (view, a, b) in enumerate(zip(views, measured[0], measured[1], strict=True))
    }
    for name, metric in metrics.items():
        found, how = metric.values(both[through[name].view])
        values |= found
        if how:
            details[name] = how
    a, b = measured[0][0], measured[1][0]
    return {
        "format": FORMAT,
        "protocol": "images",
        "repeats": 1,
        "metrics": values,
        "errors": {},
        "per_seed": [{"seed": seed, **values}],
        "details": details,
        "notes": _notes([*measured[0], *measured[1]], through),
        "model": {"path": a.record["path"], "name": Path(a.record["path"]).name, "role": "other"},
        "sampling": {"num": a.record["num_samples"], "seed": a.record.get("seed")},
        "a": a.record,
        "reference": b.record,
        "extractors": {
            look.view.key: {"sha256": look.features.sha256, "resize": look.features.resize}
            for look in through.values()
        },
        "versions": versions(),
        "commit": commit(),
        "processes": 1,
        "seconds": round(time.perf_counter() - began, 3),
        "date": datetime.date.today().isoformat(),
    }


def work(source: Source) -> int:
    """How long it takes to measure: an order."""
    if isinstance(source, Stored | Digits):
        return 0
    return 2 if isinstance(source, Model) else 1


def write_record(record: Mapping[str, Any], output: Path) -> None:
    """Added to a file as one line; a .json is written whole, aside and then renamed.

    StepDistillError where it cannot be written.
    """
    try:
        if output.suffix != ".json":
            with output.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            return
        aside = output.with_name(f".{output.name}.partial")
        try:
            aside.write_text(json.dumps(record, indent=1) + "\n")
            flush(aside)
            aside.replace(output)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise StepDistillError(f"could not write {output}: {error.strerror}") from error


def describe(record: Mapping[str, Any]) -> str:
    """The record in lines."""
    lines = []
    for side, name in (("a", "a"), ("reference", "b")):
        own = record[side]
        count = own["num_samples"]
        facts = [own["kind"], "images unknown" if count is None else f"{count:,} images"]
        facts += [f"{key} {own[key]}" for key in ("steps", "seed") if own.get(key) is not None]
        facts += [f"{own['skipped']} unreadable left out"] if own.get("skipped") else []
        lines.append(f"{name}: {own['path']} ({', '.join(facts)})")
    lines += [f"  {name:16} {value:.6g}" for name, value in record["metrics"].items()]
    lines += [f"  {key}: {own['resize']}" for key, own in record["extractors"].items()]
    return "\n".join([*lines, *(f"  note: {note}" for note in record["notes"])])


def _wants(
    view: View, metrics: Mapping[str, Metric], through: Mapping[str, Look]
) -> tuple[Want, Want]:
    own = [name for name, look in through.items() if look.view == view]
    features = through[own[0]].features
    a, b = (any(metrics[name].keeps[side] for name in own) for side in (0, 1))
    return Want(features, a), Want(features, b)


def _needs_features(
    own: Measured, metrics: Mapping[str, Metric], through: Mapping[str, Look], features: Features
) -> str:
    names = [n for n, m in metrics.items() if any(m.keeps) and through[n].features is features]
    return (
        f"{own.record['path']} holds a mean and a covariance alone, and {' and '.join(names)} need "
        "all features: give the images, or make it with stepdistill eval reference --keep_features"
    )


def _notes(measured: Sequence[Measured], through: Mapping[str, Look]) -> list[str]:
    notes = [note for own in measured for note in own.notes]
    for look in through.values():
        notes += [said] if (said := _unpublished(look)) else []
    return list(dict.fromkeys(notes))


def _unpublished(look: Look) -> str | None:
    return unpublished(replace(look.features, name=look.view.extractor))
