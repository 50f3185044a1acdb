"""Where a student comes from, as its folder tells it: method, data and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import Settings
from ..precomputed import find_precomputed
from ..runs import RunFolder, read_metrics
from ..sources import shown_source
from ..watching import ALARM, SECONDS, measurements
from .options import DistilOptions


def provenance(name: str, settings: Settings, run: RunFolder, iteration: int) -> dict[str, Any]:
    """What ``stepdistill.json`` and the model card say of a student of ``train NAME``."""
    found = measured(run.metrics, iteration)
    return {
        "method": name,
        "iteration": iteration,
        "data": learned_from(settings.get(DistilOptions)),
        **({"metrics": found} if found else {}),
    }


def learned_from(options: DistilOptions) -> str:
    """The data in words. Of a local path the last part alone: a card is read by strangers."""
    if options.prompts:
        return f"prompts of {shown_source(options.prompts)}"
    if find_precomputed(options.data):
        return f"{shown_source(options.data)}, precomputed"
    if options.data:
        return f"images of {shown_source(options.data)}"
    return "what the teacher brings"


def measured(metrics: Path, iteration: int) -> dict[str, float]:
    """The last measurement of this very iteration; {} if there is none."""
    found = measurements([row for row in read_metrics(metrics) if row["iteration"] == iteration])
    return {k: v for k, v in found[-1].items() if k not in (SECONDS, ALARM)} if found else {}
