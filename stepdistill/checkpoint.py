"""Checkpoints: everything needed to go on exactly, written aside and renamed.

``checkpoints/000500/`` holds ``state.safetensors`` (trainable weights, EMA and optimizer moments,
by name) and ``state.json`` (iteration, settings, metric). There is no random state to save: draws
are functions of the iteration (see draws.py). The folder is written as ``000500.partial``, flushed
to disk and renamed, so that one of its final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from .ema import EMA
from .errors import StepDistillError, UserError
from .roles import Role

WEIGHTS, INDEX = "state.safetensors", "state.json"


@dataclass
class Checkpoint:
    """The state of a run, listed once. ``settings`` must be equal for a resume to be allowed."""

    roles: Mapping[str, Role]
    optimizers: Mapping[str, Optimizer]
    ema: EMA
    settings: dict[str, Any]

    def save(self, folder: Path, iteration: int, metric: float | None = None) -> Path:
        """Write ``folder/NNNNNN``; on a full disk nothing is left and earlier ones stay good."""
        final = folder / f"{iteration:06d}"
        partial = final.with_suffix(".partial")
        index = {"iteration": iteration, "metric": metric, "settings": self.settings}
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(self._tensors(), partial / WEIGHTS)
            (partial / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
            for name in (WEIGHTS, INDEX):
                _flush(partial / name)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            _flush(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StepDistillError(
                f"could not write checkpoint {final}: {error}. Earlier checkpoints are whole; free "
                "some disk space and run the same command again"
            ) from error
        return final

    def load(self, path: Path) -> int:
        """Restore in place and return the iteration. UserError for another run's or a torn one."""
        index = read_index(path)
        if index["settings"] != self.settings:
            changed = _differences(index["settings"], self.settings)
            raise UserError(
                f"{path} was made with other settings ({changed}): give the same settings, or "
                "another --output"
            )
        try:
            tensors = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / WEIGHTS} is damaged ({error}): remove {path}") from error
        device = next(iter(self.ema.weights.values())).device
        with torch.no_grad():
            for name, role in self.roles.items():
                for key, parameter in role.trainable().items():
                    parameter.copy_(tensors[f"weights/{name}/{key}"])
            for key, average in self.ema.weights.items():
                average.copy_(tensors[f"ema/{key}"])
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for i, key in enumerate(self.roles[name].trainable()):
                prefix = f"optimizer/{name}/{key}/"
                found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                state[i] = {k: v if k == "step" else v.to(device) for k, v in found.items()}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(index["iteration"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, role in self.roles.items():
            for key, parameter in role.trainable().items():
                tensors[f"weights/{name}/{key}"] = parameter.detach()
        for key, average in self.ema.weights.items():
            tensors[f"ema/{key}"] = average
        for name, optimizer in self.optimizers.items():
            for key, parameter in self.roles[name].trainable().items():
                for moment, value in optimizer.state[parameter].items():
                    tensors[f"optimizer/{name}/{key}/{moment}"] = torch.as_tensor(value)
        return {key: value.contiguous().cpu() for key, value in tensors.items()}


@torch.no_grad()
def load_average(path: Path, role: Role) -> None:
    """Put the averaged weights of a checkpoint into ``role``."""
    tensors = load_file(path / WEIGHTS)
    for key, parameter in role.trainable().items():
        parameter.copy_(tensors[f"ema/{key}"])


def read_index(path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint's tensors."""
    index: dict[str, Any] = json.loads((path / INDEX).read_text())
    return index


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first."""
    named = [p for p in folder.glob("*") if p.name.isdigit() and (p / INDEX).exists()]
    return sorted(named, key=lambda p: int(p.name))


def prune(folder: Path, keep: int) -> None:
    """Keep the newest ``keep`` and the one with the lowest metric."""
    paths = complete(folder)
    scored = [(read_index(p)["metric"], p) for p in paths]
    best = min(((m, p) for m, p in scored if m is not None), default=(None, None))[1]
    for path in paths[:-keep]:
        if path != best:
            # renamed first, so that a kill while deleting leaves no torn checkpoint behind
            doomed = path.with_suffix(".partial")
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest metric, if any was measured."""
    scored = [(read_index(p)["metric"], p) for p in complete(folder)]
    return min(((m, p) for m, p in scored if m is not None), default=(None, None))[1]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys)
