"""Checkpoints: everything needed to go on exactly, written aside and renamed.

``checkpoints/000500/`` holds ``state.safetensors`` (trainable weights, EMA and optimizer moments,
by name) and ``state.json`` (iteration, settings, metric). There is no random state to save: draws
are functions of the iteration (see draws.py). The folder is written as ``000500.partial``, flushed
to disk and renamed, so that one of its final name is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from .ema import EMA
from .errors import StepDistillError, UserError
from .files import differences, flush
from .roles import Role
from .running_means import RunningMeans

WEIGHTS, INDEX = "state.safetensors", "state.json"
PARTIAL, REMOVED = ".partial", ".removed"  # folders on their way to be a checkpoint, or from it


@dataclass
class Checkpoint:
    """The state of a run, listed once. ``settings`` must be equal for a resume to be allowed."""

    roles: Mapping[str, Role]
    optimizers: Mapping[str, Optimizer]
    ema: EMA
    settings: dict[str, Any]
    statistics: Mapping[str, RunningMeans] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = json.loads(json.dumps(self.settings, default=str))  # as they will be read

    def save(
        self,
        folder: Path,
        iteration: int,
        metric: float | None = None,
        logs: Mapping[str, float] | None = None,
    ) -> Path:
        """Write ``folder/NNNNNN``; on a full disk nothing is left and earlier ones stay good.

        ``logs`` are the last values of the logged terms, some of them older than this iteration.
        """
        final = folder / f"{iteration:06d}"
        partial = final.with_suffix(PARTIAL)
        index = {"iteration": iteration, "metric": metric, "logs": dict(logs or {})}
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(self._tensors(), partial / WEIGHTS)
            text = json.dumps({**index, "settings": self.settings}, indent=1, sort_keys=True)
            (partial / INDEX).write_text(text)
            for path in (partial / WEIGHTS, partial / INDEX, partial):
                flush(path)
            os.replace(partial, final)
            flush(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StepDistillError(
                f"could not write checkpoint {final}: {error}. Earlier checkpoints are whole; free "
                "some disk space and run the same command again"
            ) from error
        return final

    def load(self, path: Path) -> tuple[int, dict[str, float]]:
        """Restore in place; (iteration, logs). UserError for another run's or a damaged one."""
        index = read_index(path)
        if index["settings"] != self.settings:
            changed = differences(index["settings"], self.settings)
            raise UserError(
                f"{path} was made with other settings ({changed}): give the same settings, or "
                "another --output"
            )
        tensors = _read(path)
        live = self._weights()
        stored = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
        if _kinds(stored) != _kinds(live):
            changed = differences(_kinds(stored), _kinds(live))
            raise UserError(f"{path} is of other networks ({changed}): give another --output")
        for key, tensor in live.items():
            tensor.copy_(stored[key])
        moments: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                parameter, _, moment = key.rpartition("/")
                # a copy: what load_file gives may be a view of the file; a count was a plain number
                is_count = value.ndim == 0 and not value.is_floating_point()
                moments[parameter][moment] = value.item() if is_count else value.clone()
        for name, optimizer in self.optimizers.items():
            keys = self.roles[name].trainable()
            state = {i: moments[f"optimizer/{name}/{key}"] for i, key in enumerate(keys)}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(index["iteration"]), index["logs"]

    def _weights(self) -> dict[str, Tensor]:
        """The live trainable weights, their average, and running means."""
        weights = {
            f"weights/{name}/{key}": parameter.detach()
            for name, role in self.roles.items()
            for key, parameter in role.trainable().items()
        }
        means = {
            f"statistics/{name}/{key}": tensor
            for name, own in self.statistics.items()
            for key, tensor in own.tensors().items()
        }
        return {**weights, **{f"ema/{k}": v for k, v in self.ema.weights.items()}, **means}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = self._weights()
        for name, optimizer in self.optimizers.items():
            for key, parameter in self.roles[name].trainable().items():
                for moment, value in optimizer.state[parameter].items():
                    tensors[f"optimizer/{name}/{key}/{moment}"] = torch.as_tensor(value)
        return {key: value.contiguous().cpu() for key, value in tensors.items()}


@torch.no_grad()
def load_average(path: Path, role: Role) -> None:
    """Put the averaged weights of a checkpoint into ``role``."""
    tensors = _read(path)
    for key, parameter in role.trainable().items():
        parameter.copy_(tensors[f"ema/{key}"])


def weights_under(path: Path, place: str) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors that lie under ``place``, "weights/critic" say, by the name
    that they have there; UserError for a damaged one.
    """
    try:
        with safe_open(path / WEIGHTS, "pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{place}/")]  # noqa: SIM118
            return {name[len(place) + 1 :]: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS} is damaged ({error}): remove {path}") from error


def read_index(path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint's tensors."""
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path / INDEX} is damaged ({error}): remove {path}") from error
    return index


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first."""
    named = [p for p in folder.glob("*") if p.name.isdigit() and (p / INDEX).exists()]
    return sorted(named, key=lambda p: int(p.name))


def newest(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any; UserError if there is one and ``resume`` is off."""
    found = complete(folder)
    if found and not resume:
        raise UserError(
            f"{folder} holds {len(found)} checkpoints and resume is off: give another run folder, "
            "or remove this one"
        )
    return found[-1] if found else None


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest metric, if any was measured."""
    scored = [(read_index(p)["metric"], p) for p in complete(folder)]
    measured = [(m, p) for m, p in scored if m is not None and math.isfinite(m)]
    return min(measured, default=(None, None))[1]


def prune(folder: Path, keep: int) -> None:
    """Keep the newest ``keep`` and the best; clear what kills have left half written or removed."""
    spared = best(folder)
    for path in complete(folder)[:-keep]:
        if path != spared:
            # renamed first, so that a kill while removing leaves no torn checkpoint behind
            os.replace(path, path.with_suffix(REMOVED))
    for leftover in (*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{REMOVED}")):
        shutil.rmtree(leftover, ignore_errors=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS} is damaged ({error}): remove {path}") from error
    return tensors


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: f"{value.dtype} {tuple(value.shape)}" for key, value in tensors.items()}
