"""Weights read from a file whole and strictly: nothing is resized, renamed, left out or downloaded.

Libraries that load for fine-tuning repair what does not fit (a position embedding of another length
is interpolated, a missing layer stays random); a score of repaired weights is a number of nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError, first_line

# What a file that is cut off, or of another kind, makes its reader raise.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of what ``torch.save`` wrote of a state dict, bare or
    as the entry "state_dict". UserError if the file is truncated or holds something else."""
    try:
        if file.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(file)
            return tensors
        held = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"{file} is truncated, or no file of weights ({first_line(error)}): fetch it again"
        ) from error
    state = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file} holds no state dict: fetch the file of weights itself")
    return state


def fill(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Put ``state`` into ``network``, as float32. UserError as of :func:`same_shapes`."""
    same_shapes(network.state_dict(), state, file)
    network.load_state_dict(state)


def same_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path) -> None:
    """UserError if a tensor of ``state``, which is ``file``'s, is missing, is too many or has
    another shape than ``own``."""
    for name in sorted(own.keys() | state.keys()):
        ours, theirs = (list(d[name].shape) if name in d else "none" for d in (own, state))
        if ours != theirs:
            raise UserError(
                f"{file} holds the weights of another network ({name} is {theirs} there, "
                f"{ours} here): fetch the published file"
            )


def optional(package: str) -> ModuleType:
    """The package of the extra "scores". UserError, with the line that installs it, without it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f'this score needs {package} ({first_line(error)}): pip install "stepdistill[scores]"'
        ) from error
