"""Starting a generator from another run's student: a warm-up by regression, then DMD2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from .conditioning import Conditioning
from .errors import UserError
from .files import differences
from .roles import Role, has_adapters
from .runs import RunFolder
from .teachers import Stored, Teacher, load_teacher


@torch.no_grad()
def start_from(path: Path, generator: Role, teacher: Teacher) -> None:
    """Put the weights of a student, of its folder or its run's, into ``generator``.

    UserError if there is no student, or one of another network, or the generator is a LoRA.
    """
    if has_adapters(generator):
        raise UserError("init starts a generator with all its weights: set lora.rank=0")
    folder = student_folder(path)
    without_encoders = Stored(None, Conditioning.empty(1))
    options = replace(teacher.options, config=None)  # of the teacher's file, not of a folder
    student = load_teacher(folder, options=options, stored=without_encoders)
    if student.family.card != teacher.family.card:
        raise UserError(
            f"{folder} is a student of the family {student.family.card.name}, and {teacher.name} "
            f"is of {teacher.family.card.name}: give a student of this teacher"
        )
    found = teacher.family.student_weights(teacher, student.denoiser)
    own = generator.module.backbone.network.state_dict()
    if (there := shapes(found)) != (here := shapes(own)):
        raise UserError(
            f"{folder} is of another network than {teacher.name} ({differences(there, here)}): "
            "give a student of this teacher"
        )
    for name, value in own.items():
        value.copy_(found[name])


def student_folder(path: Path) -> Path:
    """The student's folder that ``path`` is, or that the run in it has made. UserError if none."""
    folder = path if (path / "model_index.json").exists() else RunFolder(path).student
    if not (folder / "model_index.json").exists():
        raise UserError(
            f"{path} is no student and holds none: finish that run, or write its student with "
            "stepdistill export"
        )
    return folder


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """By name."""
    return {name: list(value.shape) for name, value in weights.items()}
