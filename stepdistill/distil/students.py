"""The student of a run, written as a diffusers folder or as a LoRA file."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import nn

from .. import checkpoint
from ..config import Settings
from ..ema import EMA
from ..errors import UserError
from ..export import export, export_lora
from ..fit import Hook
from ..methods import METHODS
from ..methods.base import Method
from ..roles import Role, has_adapters, merged
from ..runs import RunFolder
from ..teachers import Teacher, read_card
from .build import build_method, read_teacher
from .options import DistilOptions, read_settings


def export_student(
    name: str, method: Method, teacher: Teacher, folder: Path, iteration: int
) -> None:
    """Write the generator as it is now, as a diffusers folder."""
    card = {"method": name, "iteration": iteration}
    export(exportable(method.roles["generator"]), teacher, method.plan, folder, card)


def export_adapters(
    name: str, method: Method, teacher: Teacher, folder: Path, iteration: int
) -> None:
    """Write the adapters of the generator as they are now."""
    card = {"method": name, "iteration": iteration}
    export_lora(method.roles["generator"].frozen, teacher, method.plan, folder, card)


def exportable(role: Role) -> nn.Module:
    """The role's denoiser without adapters, in eval mode; the role itself stays as it is."""
    return merged(role).eval() if has_adapters(role) else role.frozen


def export_finished(
    name: str, method: Method, teacher: Teacher, run: RunFolder, settings: Settings, iteration: int
) -> list[Path]:
    """Write what ``export`` asks for, unless it is there; the folders."""
    wanted = settings.get(DistilOptions).export
    written = []
    for kind, folder, write in (
        ("folder", run.student, export_student),
        ("lora", run.lora, export_adapters),
    ):
        if wanted in (kind, "both"):
            if read_card(folder).get("iteration") != iteration:
                write(name, method, teacher, folder, iteration)
            written.append(folder)
    return written


def exports_on_the_way(
    name: str, teacher: Teacher, run: RunFolder, settings: Settings, accelerator: Accelerator
) -> list[Hook]:
    """The hook that writes ``students/NNNNNN``, if there is to be one."""
    every = settings.get(DistilOptions).export_every

    def write(iteration: int, method: Method, ema: EMA) -> None:
        if iteration % every == 0 and accelerator.is_main_process:
            with ema.applied():
                folder = run.path / "students" / f"{iteration:06d}"
                export_student(name, method, teacher, folder, iteration)

    return [write] if every else []


def export_checkpoint(run: Path, output: Path, iteration: int | None) -> Path:
    """Export the student of a checkpoint of ``run``: the given iteration, or the best measured one.

    UserError if the folder has no such checkpoint.
    """
    folder = RunFolder(run).checkpoints
    found = checkpoint.complete(folder)
    if not found:
        raise UserError(f"{run} holds no checkpoint")
    named = {int(path.name): path for path in found}
    if iteration is not None and iteration not in named:
        raise UserError(f"{run} has no checkpoint {iteration}: it has {sorted(named)}")
    path = named[iteration] if iteration is not None else checkpoint.best(folder) or found[-1]
    name = checkpoint.read_index(path)["settings"].get("method_name")
    if name not in METHODS:
        raise UserError(f"{run} is not a run of stepdistill train: its checkpoints name no method")
    settings = read_settings(name, ["--config", str(run / "config.yaml")])
    teacher = read_teacher(settings)
    method = build_method(name, settings, teacher)
    checkpoint.load_average(path, method.roles["generator"])
    export_student(name, method, teacher, output, int(path.name))
    return path
