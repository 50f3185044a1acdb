"""Starting roles from another run's: a warm-up by regression, then DMD2; no GAN, then one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .conditioning import Conditioning
from .errors import UserError
from .files import differences
from .methods import METHODS
from .methods.base import Method
from .methods.matching import Matching
from .roles import FULL, LoRAOptions, Role, has_adapters
from .runs import RunFolder
from .sources import read_card
from .teachers import Stored, Teacher, load_teacher


@torch.no_grad()
def start_from(path: Path, generator: Role, teacher: Teacher, lora: LoRAOptions = FULL) -> None:
    """Put the weights of a student, of its folder or its run's, into ``generator``.

    A LoRA, of ``lora``, starts from the averaged adapters that a run has exported. UserError if
    there is no student, or one of another network, or the run's generator is no such LoRA.
    """
    if has_adapters(generator):
        _start_adapters(path, generator, lora)
        return
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


@torch.no_grad()
def start_critic_from(path: Path, method: Method, lora: LoRAOptions = FULL) -> list[str]:
    """Put the weights of a run's newest checkpoint into the critic, and into a discriminator's
    head where that run has one too; the names of these roles.

    UserError for a method without a critic, no run, and roles that differ from this method's.
    """
    own = [name for name in method.roles if name != "generator"]
    if not own:
        raise UserError(
            f"init_critic={path} is for a method with a critic, and this one has none: leave it out"
        )
    source = _newest(path)
    settings = _settings(source)
    found = {name: checkpoint.weights_under(source, f"weights/{name}") for name in own}
    if not found[own[0]]:
        raise UserError(
            f"{path} is a run of {settings['method_name']}, which trains no {own[0]}: leave "
            "init_critic out"
        )
    if isinstance(method, Matching):
        _check_scales(
            "critic", path, _critic_lora(settings), method.critic_lora(method.config, lora)
        )
    started = [name for name in own if found[name]]
    for name in started:
        _check_fits(name, path, found[name], method.roles[name].trainable())
    for name in started:
        _put(found[name], method.roles[name])
    return started


def _start_adapters(path: Path, generator: Role, lora: LoRAOptions) -> None:
    """From the checkpoint that was exported, or the newest where none was."""
    run = RunFolder(path)
    cards = [read_card(folder).get("iteration") for folder in (run.student, run.lora)]
    exported = [run.checkpoints / f"{i:06d}" for i in cards if i is not None]
    source = next((own for own in exported if (own / checkpoint.INDEX).exists()), None)
    source = source or _newest(path)
    there = _lora(_settings(source)["lora"])
    if there.rank == 0:
        raise UserError(
            f"{path} has trained all weights, and from there init starts a generator with all its "
            "weights: set lora.rank=0"
        )
    _check_scales("generator", path, there, lora)
    found = checkpoint.weights_under(source, "ema")
    _check_fits("generator", path, found, generator.trainable())
    _put(found, generator)


def _newest(path: Path) -> Path:
    found = checkpoint.complete(RunFolder(path).checkpoints)
    if not found:
        raise UserError(f"{path} is no run with a checkpoint: give the folder of one")
    return found[-1]


def _settings(source: Path) -> dict[str, Any]:
    """What a checkpoint's run was asked for."""
    settings: dict[str, Any] = checkpoint.read_index(source)["settings"]
    if settings.get("method_name") not in METHODS:
        raise UserError(f"{source} is not of a run of stepdistill train: it names no method")
    return settings


def _lora(options: Mapping[str, Any]) -> LoRAOptions:
    return LoRAOptions(options["rank"], options["alpha"], tuple(options["targets"]))


def _critic_lora(settings: Mapping[str, Any]) -> LoRAOptions:
    """How the critic of such a run learns."""
    kind, lora = METHODS[settings["method_name"]], _lora(settings["lora"])
    if not issubclass(kind, Matching):
        return lora
    found: LoRAOptions = kind.critic_lora(SimpleNamespace(**settings["method"]), lora)
    return found


def _check_scales(name: str, path: Path, there: LoRAOptions, here: LoRAOptions) -> None:
    """UserError for adapters that are not used as they were trained."""
    if there.rank != here.rank or (here.rank and there.alpha != here.alpha):
        told = [
            f"a LoRA of rank {own.rank} and alpha {own.alpha:g}" if own.rank else "all weights"
            for own in (there, here)
        ]
        raise UserError(
            f"the {name} of {path} learns {told[0]}, and this one {told[1]}: give both runs the "
            "same"
        )


def _check_fits(
    name: str, path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    if (there := shapes(found)) != (here := shapes(own)):
        raise UserError(
            f"the {name} of {path} is another network than this run's ({differences(there, here)}"
            "): give a run of the same teacher and settings"
        )


def _put(found: Mapping[str, Tensor], role: Role) -> None:
    for name, parameter in role.trainable().items():
        parameter.copy_(found[name])


def shapes(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By name."""
    return {name: list(value.shape) for name, value in weights.items()}
