"""What a student that was to forget a digit makes of it, and how good the other digits are.

    python -m stepdistill.evals.forgetting_record --forget 3 --plain runs/sid/student \\
        --students runs/sfd/student --output evals/records/matching/forgetting.json

Each student is loaded and called as a stock diffusers pipeline: so many samples are asked of the
forgotten digit, of which the classifier finds some to show it still, and so many of the others, in
the data's proportions, whose Frechet distance is taken to the real images of those digits. A
record that is there gains the students it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.digits import NUM_CLASSES, stratified_labels
from stepdistill.errors import UserError
from stepdistill.evaluation.options import writable
from stepdistill.metrics.features import quantised
from stepdistill.metrics.frechet import Moments, Statistics, frechet_distance
from stepdistill.metrics.quality import batches, digits_reference
from stepdistill.students import Student, load_student
from stepdistill.teachers import read_card


@dataclass(frozen=True)
class Options:
    """Measure what students of the digits have forgotten, and what not.

    Args:
        forget: the digit
        plain: a student that was to forget nothing, to compare with
        students: those that were to forget it
        output: the JSON record
        asked: samples of the forgotten digit
        others: samples of the other digits
        seed: of the first sample
    """

    forget: int
    plain: str
    students: tuple[str, ...]
    output: str
    asked: int = 10_000
    others: int = 45_000
    seed: int = 0


def features_of(student: Student, labels: Tensor, seed: int) -> Tensor:
    """The classifier's features (N, D) of one sample a label."""
    classifier, _ = digits_reference()
    assert student.plan is not None
    found = []
    for rows in batches(len(labels)):
        seeds = range(seed + rows.start, seed + rows.stop)
        told = labels[rows.start : rows.stop].tolist()
        x0 = student.sample(told, seeds, student.plan.steps, batch_size=len(told))
        found.append(classifier.features(quantised(x0.cpu())))
    return torch.cat(found)


def measured(folder: Path, options: Options) -> dict[str, Any]:
    """A student's row: ``generated`` in percent of the requests, ``fid_others`` and accuracy."""
    student, card = load_student(folder), read_card(folder)
    if student.plan is None:
        raise UserError(f"{folder} is no student: its card has no plan")
    classifier, reference = digits_reference()
    asked = torch.full((options.asked,), options.forget)
    shown = classifier.head(features_of(student, asked, options.seed)).argmax(1)
    proportions = reference.proportions.clone()
    proportions[options.forget] = 0
    labels = stratified_labels(proportions, options.others)
    features = features_of(student, labels, options.seed + options.asked)
    right = classifier.head(features).argmax(1) == labels
    return {
        "run": folder.parent.name,
        "method": card["method"],
        "override": override_of(folder),
        "nfe": student.plan.steps,
        "generated": 100 * float((shown == options.forget).float().mean()),
        "made_instead": torch.bincount(shown, minlength=NUM_CLASSES).tolist(),
        "fid_others": distance(features, reference.features[reference.labels != options.forget]),
        "accuracy_others": 100 * float(right.float().mean()),
    }


def override_of(folder: Path) -> list[Any] | None:
    """What the student's run was told to make instead, [] for any other digit; None of a method
    that forgets nothing. UserError for a student that lies in no run."""
    config = folder.parent / "config.yaml"
    if not config.exists():
        raise UserError(f"{folder} lies in no run of stepdistill train: {config} is not there")
    found: list[Any] | None = yaml.safe_load(config.read_text())["method"].get("override")
    return found


def rows_so_far(output: Path, options: Options) -> list[dict[str, Any]]:
    """Those of a record that is there, to go on with. UserError for one of another question."""
    if not output.exists():
        return []
    record = json.loads(output.read_text())
    for name in ("forget", "asked", "others"):
        if record[name] != getattr(options, name):
            raise UserError(
                f"{output} is of {name}={record[name]}, and this is of {getattr(options, name)}: "
                "give another output"
            )
    rows: list[dict[str, Any]] = record["students"]
    return rows


def distance(features: Tensor, real: Tensor) -> float:
    """Frechet distance of two sets of features."""
    both = []
    for own in (features, real):
        moments = Moments()
        moments.add(own)
        both.append(Statistics.of(moments))
    return frechet_distance(*both)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row, and add it to the record."""
    program = "stepdistill.evals.forgetting_record"
    options = parse(program, (Options,), {}, arguments).get(Options)
    if not 0 <= options.forget < NUM_CLASSES:
        raise UserError(f"forget must be a digit, got {options.forget}")
    output = writable(Path(options.output))
    rows = rows_so_far(output, options)
    for name in (options.plain, *options.students):
        row = measured(Path(name), options)
        print(json.dumps(row), flush=True)
        rows = [*(old for old in rows if old["run"] != row["run"]), row]
        record = {
            "forget": options.forget,
            "asked": options.asked,
            "others": options.others,
            "students": sorted(rows, key=lambda own: str(own["run"])),
            "versions": {"torch": torch.__version__},
        }
        output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
