"""Two sets of images compared by any metrics, each image decoded once, with the record of it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...metrics.extractors import unpublished
from ...metrics.features import Features
from ...metrics.frechet import frechet_distance
from ...metrics.quality import floor
from ..measures.image_metrics import Compared, Metric, check_extractor, named
from ..measures.views import View
from ..measures.weights import weights_for
from ..reading.measuring import Measured, Want
from ..records.provenance import commit, versions
from ..references.reference import OfBoth
from ..references.stored import Stored, check_one_each
from .samples import DIGITS, Model
from .sources import Digits, Source

FORMAT = 1


@dataclass(frozen=True)
class Through:
    """What two sets are looked at through; None takes the default.

    Args:
        features: the chosen extractor; by default the digit classifier where a side is of digits,
            else Inception
        weights: its file, FILE or NAME=FILE
        size: both sides are cut to their centre square and resized to so many pixels
        patch: of patch FID
        device: where networks run
    """

    features: str | None = None
    weights: str | None = None
    size: int | None = None
    patch: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Look:
    """What a metric looks through, opened."""

    view: View
    features: Features


def compare(
    pair: tuple[Source, Source], names: Sequence[str], through: Through, seed: int = 0
) -> dict[str, Any]:
    """The record of the metrics ``names`` of A and B.

    No extractor is opened for the FID of two files of statistics. UserError for metrics that there
    are not, and for what a side cannot give.
    """
    metrics = named(names)
    files = [_file_of(source) for source in pair]
    if through.features is None and [*metrics] == ["fid"] and files[0] and files[1]:
        return compare_statistics((files[0], files[1]))
    digits = any(source.of_digits for source in pair)
    chosen = through.features or (DIGITS if digits else "inception")
    check_extractor(names, chosen)
    own = replace(through, features=chosen, weights=weights_for(chosen, through.weights))
    return compare_images(pair, metrics, looks(metrics, own), seed)


def looks(metrics: Mapping[str, Metric], through: Through) -> dict[str, Look]:
    """By the name of each metric; metrics that look through the same share it. The weights are
    those of the chosen extractor, others are found."""
    opened: dict[View, Look] = {}
    found = {}
    for name, metric in metrics.items():
        view = metric.view(str(through.features), through.size, through.patch)
        if view not in opened:
            own = through.weights if view.extractor == through.features else None
            opened[view] = Look(view, view.open(own, through.device))
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
        check_one_each({v.key: own for v, own in zip(views, measured[side], strict=True)})
    values: dict[str, float] = {}
    details = {}
    measured_on: dict[str, str] = {}
    both = {
        view: Compared(a, b, wants[i][0].features, seed)
        for i, (view, a, b) in enumerate(zip(views, measured[0], measured[1], strict=True))
    }
    for name, metric in metrics.items():
        view = through[name].view
        found, how = metric.values(both[view])
        values |= found
        measured_on |= dict.fromkeys(found, view.key)
        if how:
            details[name] = how
    if isinstance(pair[1], Digits) and "fid" in values and through["fid"].features.name == DIGITS:
        details["fid"] = {"floor": floor(both[through["fid"].view].a.statistics.count, seed)}
    return {
        **_record(measured[0][0], measured[1][0], values, seed),
        "measured_on": measured_on,
        "details": details,
        "notes": _notes([*measured[0], *measured[1]], through),
        "extractors": {
            look.view.key: {"sha256": look.features.sha256, "resize": look.features.resize}
            for look in through.values()
        },
        "seconds": round(time.perf_counter() - began, 3),
    }


def compare_statistics(pair: tuple[Stored, Stored]) -> dict[str, Any]:
    """The record of the Frechet distance of two files of statistics, which needs no extractor.

    UserError where they are of other extractors, or of other numbers of features.
    """
    pair[0].check_alike(pair[1])
    a, b = (stored.measured(None) for stored in pair)
    values = {"fid": frechet_distance(a.statistics, b.statistics)}
    notes = list(dict.fromkeys([*a.notes, *b.notes]))
    nothing: dict[str, Any] = {"measured_on": {}, "details": {}, "extractors": {}}
    return {**_record(a, b, values, 0), **nothing, "notes": notes}


def work(source: Source) -> int:
    """How long it takes to measure: an order."""
    if isinstance(source, Stored | Digits):
        return 0
    return 2 if isinstance(source, Model) else 1


def describe(record: Mapping[str, Any]) -> str:
    """The record in lines."""
    lines = [of_side(name, record[side]) for side, name in (("a", "a"), ("reference", "b"))]
    lines += [f"  {name:16} {value:.6g}" for name, value in record["metrics"].items()]
    lines += [f"  {key}: {own['resize']}" for key, own in record["extractors"].items()]
    return "\n".join([*lines, *(f"  note: {note}" for note in record["notes"])])


def of_side(name: str, own: Mapping[str, Any]) -> str:
    """One side of a record in a line."""
    count = own["num_samples"]
    facts = [own["kind"], "images unknown" if count is None else f"{count:,} images"]
    facts += [f"{key} {own[key]}" for key in ("steps", "seed") if own.get(key) is not None]
    facts += [f"{own['skipped']} unreadable left out"] if own.get("skipped") else []
    return f"{name}: {own['path']} ({', '.join(facts)})"


def _record(a: Measured, b: Measured, values: Mapping[str, float], seed: int) -> dict[str, Any]:
    """What every record of two sides holds."""
    path = a.record["path"]
    return {
        "format": FORMAT,
        "protocol": "images",
        "repeats": 1,
        "metrics": dict(values),
        "errors": {},
        "per_seed": [{"seed": seed, **values}],
        "model": {"path": path, "name": Path(path).name, "role": "other"},
        "sampling": {"num": a.record["num_samples"], "seed": a.record.get("seed")},
        "a": a.record,
        "reference": b.record,
        "versions": versions(),
        "commit": commit(),
        "processes": 1,
        "date": datetime.date.today().isoformat(),
    }


def _file_of(source: Source) -> Stored | None:
    """The statistics that a source is, or has beside its images."""
    own = source.stored if isinstance(source, OfBoth) else source
    return own if isinstance(own, Stored) else None


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
