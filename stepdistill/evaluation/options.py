"""Options that commands of evaluation share, checked before any long work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from ..draws import check_seed
from ..errors import UserError, first_line
from .pairs.samples import Sampling

LEAST = {"num": 2, "batch_size": 1, "steps": 1, "workers": 1}


class OfPairs(Protocol):
    """The options that say how images are had."""

    @property
    def num(self) -> int | None:
        """Images of A."""

    @property
    def seed(self) -> int:
        """Of the first sample, or of the draw."""

    @property
    def steps(self) -> int | None:
        """Of a model's sampler."""

    @property
    def batch_size(self) -> int | None:
        """Images at a time."""

    @property
    def skip_corrupt(self) -> bool:
        """Whether unreadable images are left out."""

    @property
    def workers(self) -> int | None:
        """Processes that decode."""

    @property
    def device(self) -> str | None:
        """Where networks run."""


def sampling_of(asked: OfPairs) -> Sampling:
    """UserError for a count below its least, or a device this machine does not have."""
    check_least(asked, LEAST)
    check_seed(asked.seed)
    return Sampling(
        num=asked.num,
        seed=asked.seed,
        steps=asked.steps,
        batch_size=asked.batch_size,
        skip_corrupt=asked.skip_corrupt,
        device=device_of(asked.device),
        workers=asked.workers,
    )


def check_least(asked: object, least: dict[str, int]) -> None:
    """UserError for an option below its least value."""
    for name, lowest in least.items():
        value = getattr(asked, name)
        if value is not None and value < lowest:
            raise UserError(f"{name} must be at least {lowest}, got {value}")


def device_of(name: str | None) -> str:
    """The one of that name; by default cuda if there is one. UserError if this machine has none."""
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device {device} here: {first_line(error)}") from error
    return device


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """``fid kid``, ``fid,kid`` and ``[fid,kid]`` alike. UserError for an empty list."""
    found = tuple(name.strip() for one in given for name in one.split(",") if name.strip())
    if given and not found:
        raise UserError("metrics is empty: name some, as in --metrics fid kid, or leave it out")
    return found


def writable(path: Path) -> Path:
    """``path``, in a folder that exists now. UserError if nothing can be written there."""
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"cannot write to {path}: name a file in a folder you may write to")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(path.name + ".partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error}") from error
    return path
