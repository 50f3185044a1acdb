"""Training of one cell, as ``stepdistill train`` does it, in its own run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import as_arguments
from ..distil import distil, export_checkpoint
from ..runs import RunFolder
from ..teachers import read_card
from .cell import Cell
from .meter import Meter
from .pairs import pairs_folder

TIMES = "times.json"  # in the run folder: what the meter keeps


@dataclass(frozen=True)
class Spent:
    """What a training took: ``seconds`` by the clock and by the processor; ``stopped`` says that
    it came to its limit before its last iteration."""

    iterations: int
    seconds: float
    processor_seconds: float
    stopped: bool


def train(cell: Cell) -> Spent | None:
    """Train to the end of the budget or to the limit of time, and have the student in its folder.

    None if it was asked to stop: what was done is saved, and the same call goes on.
    """
    task, run = cell.task, RunFolder(cell.folder)
    values: dict[str, Any] = {
        "teacher": cell.asked.teacher,
        "output": str(cell.folder),
        "steps": task.steps,
        "seed": cell.seed,
        **task.settings,
    }
    if task.pairs:
        values["data"] = str(pairs_folder(cell.asked, cell.seed))
    cell.folder.mkdir(parents=True, exist_ok=True)
    meter = Meter(cell.folder / TIMES, task.settings["save_every"], cell.asked.minutes)
    result = distil(task.method, as_arguments(values), [meter])
    meter.keep()
    if result.interrupted and not meter.asked:
        return None
    if result.interrupted and read_card(run.student).get("iteration") != result.iteration:
        export_checkpoint(run.path, run.student, result.iteration)
    return Spent(result.iteration, *meter.of(result.iteration), result.interrupted)
