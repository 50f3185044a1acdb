"""The Frechet distance of two sources, with the record of how it was had."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..metrics.extractors import extractor
from ..metrics.features import Features
from ..metrics.frechet import frechet_distance
from ..metrics.quality import floor
from .measuring import Measured, Want
from .models import Model
from .references import OfBoth
from .sources import Digits, Source
from .stored import Stored

PACKAGES = ("stepdistill", "torch", "diffusers", "clean-fid", "numpy", "pillow")


def choose_features(
    pair: Sequence[Source], name: str | None, weights: str | None, device: str
) -> Features | None:
    """The extractor of that name; of none, the digit classifier where a side is of digits, else
    Inception. None for two files of statistics."""
    if all(isinstance(source, Stored | OfBoth) for source in pair):
        return None
    digits = any(source.of_digits for source in pair)
    return extractor(name or ("digits" if digits else "inception"), weights, device)


def compare(pair: Sequence[Source], features: Features | None, seed: int = 0) -> dict[str, Any]:
    """The JSON record of the distance between the two sources of ``pair``.

    ``fid_floor`` is what real images score at the count of the first, where the second is the
    digits: a finite sample inflates the distance. ``seed`` is of that resampling.
    """
    # files before images before samples: what is wrong with one is said before the long work
    order = sorted((0, 1), key=lambda side: _work(pair[side]))
    measured = {side: _measure(pair[side], features) for side in order}
    a, b = measured[0], measured[1]
    record: dict[str, Any] = {
        "metric": "fid",
        "fid": frechet_distance(a.statistics, b.statistics),
        "features": features.name if features else None,
        "features_sha256": features.sha256 if features else None,
        "a": a.record,
        "b": b.record,
        "notes": [*a.notes, *b.notes],
        "versions": {name: version(name) for name in PACKAGES},
    }
    if isinstance(pair[1], Digits) and features is not None and features.name == "digits":
        count = a.statistics.count
        record["fid_floor"] = floor(count, seed) if count else None
    return record


def _work(source: Source) -> int:
    return 0 if isinstance(source, Stored | OfBoth) else 1 + isinstance(source, Model)


def _measure(source: Source, features: Features | None) -> Measured:
    if features is not None:
        return source.measure([Want(features)])[0]
    assert isinstance(source, Stored | OfBoth)
    return (source.stored if isinstance(source, OfBoth) else source).measured(None)


def describe(record: dict[str, Any]) -> str:
    """The record in lines."""
    lines = [f"fid {record['fid']:.6g} ({record['features'] or 'stored'} features)"]
    for side in ("a", "b"):
        own = record[side]
        count = own["num_samples"]
        facts = [own["kind"], "images unknown" if count is None else f"{count:,} images"]
        facts += [f"{name} {own[name]}" for name in ("steps", "seed") if own.get(name) is not None]
        facts += [f"{own['skipped']} unreadable left out"] if own.get("skipped") else []
        lines.append(f"  {side}: {own['path']} ({', '.join(facts)})")
    if record.get("fid_floor") is not None:
        lines.append(f"  {record['fid_floor']:.3g} is what as many real images score")
    lines += [f"  note: {note}" for note in record["notes"]]
    return "\n".join(lines)
