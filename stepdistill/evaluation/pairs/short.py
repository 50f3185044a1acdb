"""The short form of a comparison: one Frechet distance, as ``stepdistill fid`` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .comparison import of_side


def short(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``comparison.compare`` found of the metric fid, in one flat record.

    ``fid_floor``, which is there where the second side is the digits, is what real images score at
    the count of the first: a finite sample inflates the distance.
    """
    key = record["measured_on"].get("fid")
    found = {
        "metric": "fid",
        "fid": record["metrics"]["fid"],
        "features": key,
        "features_sha256": None if key is None else record["extractors"][key]["sha256"],
        "a": record["a"],
        "b": record["reference"],
        "notes": record["notes"],
        "versions": record["versions"],
        "commit": record["commit"],
    }
    if "fid" in record["details"]:
        found["fid_floor"] = record["details"]["fid"]["floor"]
    return found


def describe(record: Mapping[str, Any]) -> str:
    """The short record in lines."""
    lines = [f"fid {record['fid']:.6g} ({record['features'] or 'stored'} features)"]
    lines += [f"  {of_side(side, record[side])}" for side in ("a", "b")]
    if "fid_floor" in record:
        lines.append(f"  {record['fid_floor']:.3g} is what as many real images score")
    return "\n".join([*lines, *(f"  note: {note}" for note in record["notes"])])
