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

# in the run folder: what the meters of the training and of a path's recording keep
TIMES, PATH_TIMES = "times.json", "path_times.json"


@dataclass(frozen=True)
class Spent:
    """What a training took, a path's recording with it: ``seconds`` by the clock and by the
    processor; ``stopped`` says that it came to its limit before its last iteration."""

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
    recording = Meter(cell.folder / PATH_TIMES, task.settings.get("path.every", 1), None)
    result = distil(task.method, as_arguments(values), [meter], [recording])
    meter.keep()
    if result.interrupted and not meter.asked:
        return None
    if result.interrupted and read_card(run.student).get("iteration") != result.iteration:
        export_checkpoint(run.path, run.student, result.iteration)
    clock, processor = meter.spent()
    if recording.iterations:
        before = recording.spent()
        clock, processor = clock + before[0], processor + before[1]
    return Spent(result.iteration, clock, processor, result.interrupted)
