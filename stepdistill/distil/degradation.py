"""The path back to the teacher (``methods/disback.py``): recorded once in a run folder of its own.

OUTPUT/degradation/
  states/000100.safetensors ...  path.json, once all are there  checkpoints/, until then

A state is cut out of the checkpoint of its iteration: what a kill leaves undone between the two is
done at the next start.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .. import checkpoint
from ..conditioning import ConditionDropout
from ..config import Settings
from ..data import Data
from ..ema import EMA
from ..errors import UserError
from ..files import differences, save_whole, whole
from ..fit import FitConfig, FitResult, Hook, fit
from ..methods.base import Method
from ..methods.disback import Backtracking, Degradation, PathOptions, StateFile
from ..methods.matching import Matching
from ..runs import RunFolder
from ..teachers import Teacher
from .options import DistilOptions


def path_options(settings: Settings) -> PathOptions:
    """Those given; no path for a method that matches no distributions."""
    found: PathOptions = settings.parts.get(PathOptions, PathOptions())
    return found


def with_path(method: Matching, settings: Settings, teacher: Teacher) -> Matching:
    """``method`` with the path that the options ask for, which may not be recorded yet."""
    own = path_options(settings)
    if own.iterations:
        states = [StateFile(file) for file in _files(_folder(settings), own)]
        method.path = Backtracking(teacher.denoiser, method.critic, states, own.interval)
    return method


def record_path(
    method: Method,
    data: Data,
    settings: Settings,
    compared: Mapping[str, Any],
    dropout: ConditionDropout | None,
    hooks: Sequence[Hook] = (),
) -> FitResult | None:
    """Record the states of the path that ``method`` has, if it has one, and start its critic.

    None once they are there; else where the recording was interrupted. ``compared`` are the run's
    settings that a recording must share. UserError for a recording with others.
    """
    if not isinstance(method, Matching) or not isinstance(method.path, Backtracking):
        return None
    own, folder = path_options(settings), _folder(settings)
    recording = _recording(settings.get(FitConfig), own)
    accelerator = Accelerator(mixed_precision="no")
    shared = {key: value for key, value in compared.items() if key != "path"}
    shared |= {"path_every": own.every, "path_lr": own.lr}
    whole_settings = {**shared, **recording.trajectory(), "max_steps": own.iterations}
    if not _is_recorded(folder, whole_settings):
        if accelerator.is_main_process:
            states = len(own.steps)
            print(f"recording {states} states of the way back to the teacher", file=sys.stderr)

        def cut(iteration: int, method: Method, average: EMA) -> None:
            if accelerator.is_main_process and iteration % own.every == 0:
                _cut_states(folder, own)

        if accelerator.is_main_process:
            _cut_states(folder, own)
        result = fit(
            Degradation(method, own.lr),
            data,
            recording,
            folder,
            settings=shared,
            accelerator=accelerator,
            hooks=[cut, *hooks],
            condition_dropout=dropout,
        )
        if result.interrupted:
            return result
        if accelerator.is_main_process:
            _finish(folder, own, whole_settings)
    if accelerator.is_main_process:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # which a recording alone needs
    accelerator.wait_for_everyone()
    method.path.start()
    return None


def _recording(config: FitConfig, own: PathOptions) -> FitConfig:
    """The loop of a recording: as long as the path, at a constant rate, and nothing measured."""
    changed: dict[str, Any] = {
        **{"max_steps": own.iterations, "save_every": own.every, "keep": 1, "log_every": own.every},
        **{"lr_warmup": 0, "lr_decay": 0, "ema_half_life": 0.0, "ema_rampup": 0.0},
        **{"sample_every": 0, "evaluate_every": 0, "stop_after": 0, "best_metric": None},
    }
    return replace(config, **changed)


def _folder(settings: Settings) -> RunFolder:
    return RunFolder(Path(settings.get(DistilOptions).output) / "degradation")


def _files(folder: RunFolder, own: PathOptions) -> list[Path]:
    return [folder.path / "states" / f"{step:06d}.safetensors" for step in own.steps]


def _cut_states(folder: RunFolder, own: PathOptions) -> None:
    """Write the states whose checkpoints are there, unless they are."""
    for step, file in zip(own.steps, _files(folder, own), strict=True):
        source = folder.checkpoints / f"{step:06d}"
        if file.exists() or not (source / checkpoint.INDEX).exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        found = checkpoint.weights_under(source, "weights/generator")
        save_whole(found, file, {"iteration": str(step)})


def _is_recorded(folder: RunFolder, settings: Mapping[str, Any]) -> bool:
    """Whether the whole path is there; UserError if it was recorded with other settings."""
    told = folder.path / "path.json"
    if not told.exists():
        return False
    then, now = json.loads(told.read_text()), json.loads(json.dumps(settings, default=str))
    if then != now:
        raise UserError(
            f"{folder.path} was recorded with other settings ({differences(then, now)}): give the "
            "same settings, or another --output"
        )
    return True


def _finish(folder: RunFolder, own: PathOptions, settings: Mapping[str, Any]) -> None:
    """Say that the path is whole."""
    missing = [str(file) for file in _files(folder, own) if not file.exists()]
    if missing:
        raise UserError(
            f"{', '.join(missing)} went missing: remove {folder.path}, and the path is recorded "
            "again"
        )
    with whole(folder.path / "path.json") as aside:
        aside.write_text(json.dumps(dict(settings), indent=1, default=str))
