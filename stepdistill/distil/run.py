"""From options to a student: what every training program does around ``fit``."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .. import checkpoint
from ..conditioning import ConditionDropout, Conditioning
from ..config import Settings, write_yaml
from ..data import Data
from ..data.images import ImageFolder
from ..data.sharded_data import ShardedData
from ..errors import UserError
from ..export import claim
from ..fit import FitConfig, FitResult, Hook, fit
from ..footprint import micro_batch
from ..initial import start_critic_from, start_from
from ..memory import estimate
from ..methods import METHODS
from ..methods.base import Method
from ..report import write_report
from ..roles import LoRAOptions
from ..runs import RunFolder
from ..savings import MemoryOptions
from ..teachers import LoadOptions, Teacher
from .build import build_method, read_teacher
from .checks import (
    check_deciding,
    check_evaluation,
    check_export,
    check_possible,
    check_validation,
    warn_of_path,
)
from .data import condition_dropout, load_data
from .degradation import path_options, record_path
from .dry_run import one_iteration
from .hooks import own_hooks
from .measuring import Measuring
from .options import DistilOptions, EvalOptions, read_settings
from .prepared import prepare_measuring
from .students import StudentWriter, put_best
from .told import what_is_told
from .validation import OF_WORLDS, evaluation, grid_conditioning, sample_grids, world_of


@dataclass(frozen=True)
class _Asked:
    """What the options ask for beside the method and its data, found before the run folder is made.

    ``shown`` is what the columns of the grids are told, None where none are drawn.
    """

    dropout: ConditionDropout | None
    hooks: list[Hook]
    shown: Conditioning | None

    @classmethod
    def of(cls, settings: Settings, teacher: Teacher, draws: bool) -> _Asked:
        """``draws`` says whether this process draws the grids."""
        options, shown = settings.get(DistilOptions), None
        if draws and settings.get(FitConfig).sample_every:
            shown = grid_conditioning(options, teacher, settings.get(LoadOptions))
        return cls(condition_dropout(options, teacher), own_hooks(options), shown)


def distil(
    name: str,
    arguments: Sequence[str] | None = None,
    hooks: Sequence[Hook] = (),
    path_hooks: Sequence[Hook] = (),
) -> FitResult:
    """Train method ``name`` in its run folder, export the averaged generator, write the report.

    ``hooks`` are called after each iteration, beside those that the options name; ``path_hooks``
    after each of a path's recording.
    """
    settings = read_settings(name, arguments)
    if settings.get(DistilOptions).dry_run:
        settings = one_iteration(settings, METHODS[name].Config)
    options = settings.get(DistilOptions)
    with_tracker = importlib.util.find_spec("tensorboard") is not None
    accelerator = Accelerator(
        mixed_precision="no",
        log_with="tensorboard" if with_tracker else None,
        project_dir=options.output if with_tracker else None,
    )
    check_evaluation(options, settings.get(EvalOptions), settings.get(FitConfig))
    teacher = read_teacher(settings, accelerator.device)
    method = build_method(name, settings, teacher)
    _start(settings, method, teacher)
    check_validation(options, teacher)
    asked = _Asked.of(settings, teacher, draws=accelerator.is_main_process)
    asked.hooks.extend(hooks)
    data = load_data(options, teacher)
    check_possible(name, method, data, teacher)
    check_export(options, settings.get(LoRAOptions), teacher)
    measuring = _measuring(settings, method, teacher, data, accelerator)
    if accelerator.is_main_process:
        warn_of_path(options, teacher)
    if options.dry_run and accelerator.is_main_process:
        ranks, device = accelerator.num_processes, accelerator.device.type
        print(estimate(method, data, settings.get(FitConfig), ranks, device).table())
    run = RunFolder(options.output)
    with run if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            _open(run, name, settings, data)
        writer = StudentWriter(name, teacher, run, settings)
        compared = _compared(name, settings)
        result = record_path(method, data, settings, compared, asked.dropout, path_hooks)
        result = result or _fit(method, data, writer, compared, accelerator, asked, measuring)
        if accelerator.is_main_process and not result.interrupted:
            with result.ema.applied():
                shown = result.iteration
                if options.export_best:
                    shown = put_best(method, run, result.iteration)
                exported = writer.finish(method, shown)
            best = f" (the best, of iteration {shown:,})" if options.export_best else ""
            print("\n".join(f"student: {folder}{best}" for folder in exported))
            print(f"page:    {write_report(run.path)}")
    if result.interrupted and accelerator.is_main_process:
        print(
            f"stopped at iteration {result.iteration}, which is saved: the same command goes on",
            file=sys.stderr,
        )
    return result


def _start(settings: Settings, method: Method, teacher: Teacher) -> None:
    """Start roles where the options say, instead of from the teacher."""
    options, lora = settings.get(DistilOptions), settings.get(LoRAOptions)
    if options.init:
        start_from(Path(options.init), method.roles["generator"], teacher, lora)
    if not options.init_critic:
        return
    if path_options(settings).iterations:
        raise UserError(
            "init_critic and path.iterations both say where the critic starts: leave out the one "
            "or set the other to 0"
        )
    start_critic_from(Path(options.init_critic), method, lora)


def _open(run: RunFolder, name: str, settings: Settings, data: Data) -> None:
    """Write a new run's settings; UserError for an old run that is not to be gone on with."""
    claim(run.student)
    found = checkpoint.complete(run.checkpoints)
    if found and not settings.get(DistilOptions).resume:
        raise UserError(
            f"{run.path} holds {len(found)} checkpoints and resume is off: give another --output, "
            "or remove the folder"
        )
    if not found:
        write_yaml(settings.resolved, run.path / "config.yaml", f"stepdistill train {name}")
        if isinstance(data, ImageFolder):
            counts = {"data/images": len(data), "data/skipped": len(data.skipped)}
            run.log({"iteration": 0, **counts})
    if isinstance(data, ImageFolder | ShardedData):
        print(data.describe(), file=sys.stderr)


def _measuring(
    settings: Settings, method: Method, teacher: Teacher, data: Data, accelerator: Accelerator
) -> Measuring | None:
    """How students are measured, None where nothing is or a built-in world does it its own way."""
    options, own = settings.get(DistilOptions), settings.get(EvalOptions)
    config, num = settings.get(FitConfig), options.evaluate_samples
    if not config.evaluate_every:
        return None
    world = world_of(options, own)
    if world is not None:
        check_deciding(options, config, OF_WORLDS[world])
        return None
    told = what_is_told(options, own, teacher, data, settings.get(LoadOptions), num)
    block = own.batch_size or micro_batch(config, accelerator.num_processes)
    scale = getattr(method.config, "guidance_scale", 1.0)
    measuring = prepare_measuring(own, told, num, block, scale, accelerator)
    check_deciding(options, config, measuring.wanted.names)
    return measuring


def _compared(name: str, settings: Settings) -> dict[str, Any]:
    """The settings beside the loop's that a resumed run must share."""
    compared = ("teacher", "data", "prompts", "init", "steps", "times", "lora")
    loaded = {k: v for k, v in settings.resolved["load"].items() if k != "encoders"}
    if loaded["config"] is None:  # as in checkpoints of before there was such an option
        loaded.pop("config")
    # options that such checkpoints do not name
    later = ("column", "split", "condition_dropout", "init_critic")
    own = settings.resolved["method"]
    own = {key: own[key] for key in own if own[key] or key not in ("lpips", "lpips_weights")}
    return {
        "method_name": name,
        "method": own,
        "load": loaded,
        "teacher_fp8": settings.get(MemoryOptions).teacher_fp8,
        **({"teacher_int8": True} if settings.get(MemoryOptions).teacher_int8 else {}),
        **({"path": settings.resolved["path"]} if path_options(settings).iterations else {}),
        **{key: settings.resolved[key] for key in later if settings.resolved[key]},
        **{key: settings.resolved[key] for key in compared},
    }


def _fit(
    method: Method,
    data: Data,
    writer: StudentWriter,
    compared: dict[str, Any],
    accelerator: Accelerator,
    asked: _Asked,
    measuring: Measuring | None,
) -> FitResult:
    run, settings, teacher = writer.run, writer.settings, writer.teacher
    options = settings.get(DistilOptions)
    draw = None
    if asked.shown is not None:
        draw = sample_grids(method, teacher, run.samples, asked.shown)
    evaluate = None
    if measuring is not None:
        evaluate = measuring.evaluation(method, run, accelerator)
    elif settings.get(FitConfig).evaluate_every:
        evaluate = evaluation(options, method, teacher, settings.get(LoadOptions))
    return fit(
        method,
        data,
        settings.get(FitConfig),
        run,
        settings=compared,
        accelerator=accelerator,
        evaluate=evaluate,
        draw_samples=draw,
        condition_dropout=asked.dropout,
        hooks=[*writer.on_the_way(accelerator), *asked.hooks],
        resume=options.resume,
    )
