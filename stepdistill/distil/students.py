"""The student of a run, written as a diffusers folder or as a LoRA file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
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
from ..sharing import push_to_hub
from ..teachers import Teacher, read_card
from .build import build_method, read_teacher
from .options import DistilOptions, read_settings
from .provenance import provenance


@dataclass(frozen=True)
class StudentWriter:
    """Writes the students of a run of ``train NAME``, with where they come from."""

    name: str
    teacher: Teacher
    run: RunFolder
    settings: Settings

    def write_folder(self, method: Method, folder: Path, iteration: int) -> None:
        """The generator as it is now, as a diffusers folder."""
        card = provenance(self.name, self.settings, self.run, iteration)
        export(exportable(method.roles["generator"]), self.teacher, method.plan, folder, card)

    def write_lora(self, method: Method, folder: Path, iteration: int) -> None:
        """The adapters of the generator as they are now."""
        card = provenance(self.name, self.settings, self.run, iteration)
        export_lora(method.roles["generator"].frozen, self.teacher, method.plan, folder, card)

    def finish(self, method: Method, iteration: int) -> list[Path]:
        """Write what ``export`` asks for, unless it is there, and push it; the folders."""
        options = self.settings.get(DistilOptions)
        written = []
        for kind, folder, write in (
            ("folder", self.run.student, self.write_folder),
            ("lora", self.run.lora, self.write_lora),
        ):
            if options.export in (kind, "both"):
                if read_card(folder).get("iteration") != iteration:
                    write(method, folder, iteration)
                written.append(folder)
        if options.push_to_hub:
            for folder in written:
                second = "-lora" if options.export == "both" and folder == self.run.lora else ""
                push_to_hub(folder, options.push_to_hub + second)
        return written

    def on_the_way(self, accelerator: Accelerator) -> list[Hook]:
        """The hook that writes ``students/NNNNNN``, if there is to be one."""
        every = self.settings.get(DistilOptions).export_every

        def write(iteration: int, method: Method, ema: EMA) -> None:
            if iteration % every == 0 and accelerator.is_main_process:
                with ema.applied():
                    folder = self.run.path / "students" / f"{iteration:06d}"
                    self.write_folder(method, folder, iteration)

        return [write] if every else []


def put_best(method: Method, run: RunFolder, iteration: int) -> int:
    """Put the averaged weights of the best checkpoint into the generator; of which iteration it is.

    Where none has been measured they stay those of ``iteration``, which is said.
    """
    path = checkpoint.best(run.checkpoints)
    if path is None:
        print(f"nothing was measured: the last student is exported, {iteration}", file=sys.stderr)
        return iteration
    checkpoint.load_average(path, method.roles["generator"])
    return int(path.name)


def exportable(role: Role) -> nn.Module:
    """The role's denoiser without adapters, in eval mode; the role itself stays as it is."""
    return merged(role).eval() if has_adapters(role) else role.frozen


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
    writer = StudentWriter(name, teacher, RunFolder(run), settings)
    writer.write_folder(method, output, int(path.name))
    return path
