"""One cell of a comparison: a method, a number of steps and a seed, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.comparing.records import read_records
from ..files import differences
from .tasks import Asked, Task

RECORDS = "records"  # in the output
CELL = "cell"  # what a record tells of it beside the measurement


@dataclass(frozen=True)
class Cell:
    """``folder`` is its run, ``record`` the file of what was measured of its student."""

    asked: Asked
    task: Task
    seed: int

    @property
    def name(self) -> str:
        """METHOD-STEPS-SEED."""
        return f"{self.task.method}-{self.task.steps}-{self.seed}"

    @property
    def folder(self) -> Path:
        """OUTPUT/TEACHER/METHOD-STEPS-SEED."""
        return self.asked.output / self.asked.teacher / self.name

    @property
    def record(self) -> Path:
        """OUTPUT/records/TEACHER-METHOD-STEPS-SEED.json."""
        return self.asked.output / RECORDS / f"{self.asked.teacher}-{self.name}.json"

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, in JSON form: records of another are not mixed with it."""
        own = {
            "teacher": self.asked.teacher,
            "method": self.task.method,
            "steps": self.task.steps,
            "seed": self.seed,
            "budget": self.asked.budget,
            "num_samples": self.asked.samples,
            "pairs": self.task.pairs,
            "settings": dict(self.task.settings),
        }
        if self.task.given:
            own["given"] = dict(self.task.given)
        plain: dict[str, Any] = json.loads(json.dumps(own))
        return plain

    def is_done(self) -> bool:
        """Whether its record is there, and no limit that it was stopped at is higher now.

        UserError for a record of other settings.
        """
        if not self.record.exists():
            return False
        told = read_records([str(self.record)])[0].part(CELL)
        now = self.identity()
        then = {name: told.get(name) for name in now}
        if then != now:
            raise UserError(
                f"{self.record} was made otherwise ({differences(then, now)}): give another "
                "--output, or remove the record and the cell's folder"
            )
        limit = self.asked.minutes
        return not told["stopped"] or (limit is not None and limit <= told["minutes"])


def cells(asked: Asked, tasks: Sequence[Task]) -> Iterator[Cell]:
    """All, seed by seed, so that an early look sees every method."""
    return (Cell(asked, task, seed) for seed in asked.seeds for task in tasks)
