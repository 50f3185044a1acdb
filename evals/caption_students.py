"""Measure students of a built-in text-to-image teacher, as their users run them.

    python -m stepdistill.evals.caption_students --teacher stepdistill/worlds/digits-t2i/teacher \\
        --students runs/t2i-0/student runs/t2i-1/student --output evals/records/digits-t2i.json

Each student is loaded and called as a stock diffusers pipeline, with as many samples as the
teacher's record has. A record that is there gains the students it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.captioned_digits import Caption
from stepdistill.errors import UserError
from stepdistill.metrics.caption_quality import CaptionSampler, measure_captioned
from stepdistill.students import Student, load_student
from stepdistill.teachers import read_card


@dataclass(frozen=True)
class Options:
    """Measure students of a text-to-image teacher of the captioned digits.

    Args:
        teacher: its folder, with the record.json of caption_record
        students: folders of exported students
        output: the JSON record
        seed: of the first picture
    """

    teacher: str
    students: tuple[str, ...]
    output: str
    seed: int = 0


def student_sampler(student: Student, steps: int) -> CaptionSampler:
    """Prompts and image seeds -> pictures, by whole calls of the stock pipeline."""

    def sampler(prompts: Sequence[Caption], seeds: range) -> Tensor:
        return student.sample([prompt.text for prompt in prompts], list(seeds), steps, alone=False)

    return sampler


def measured(folder: Path, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    """A student's row, beside the teacher's lowest distance and its highest accuracy.

    ``fid_ratio`` is (student - floor) / (teacher - floor), each distance on as many samples.
    """
    student, card = load_student(folder), read_card(folder)
    if student.plan is None:
        raise UserError(f"{folder} is no student: its card has no plan")
    steps, count = student.plan.steps, teacher["num_samples"]
    found = measure_captioned(student_sampler(student, steps), count, seed).record()
    floor = teacher["fid_floor"]
    best = teacher["most_accurate"]["caption_accuracy"]
    return {
        "run": folder.parent.name,
        "pipeline": type(student.pipeline).__name__,
        "method": card["method"],
        "iteration": card["iteration"],
        "nfe": steps,
        **found,
        "fid_ratio": (found["fid"] - floor) / (teacher["fid"] - floor),
        "accuracy_gain": found["caption_accuracy"] - best,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row, and add it to the record."""
    options = parse("stepdistill.evals.caption_students", (Options,), {}, arguments).get(Options)
    teacher = json.loads((Path(options.teacher) / "record.json").read_text())
    output = Path(options.output)
    rows = json.loads(output.read_text())["students"] if output.exists() else []
    for name in options.students:
        row = measured(Path(name), teacher, options.seed)
        print(json.dumps(row), flush=True)
        rows = [*(old for old in rows if old["run"] != row["run"]), row]
        rows.sort(key=lambda row: (row["nfe"], row["run"]))
        record = {"teacher": teacher, "students": rows, "versions": {"torch": torch.__version__}}
        output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
