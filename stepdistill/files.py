"""What checkpoints, shards and records are written with: whole files, flushing, a lock."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import StepDistillError, UserError


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Write the path that is given, and it becomes ``file``. StepDistillError if it cannot.

    safetensors tells a full disk by an error of its own, which has no errno.
    """
    aside = file.with_name(file.name + ".partial")
    try:
        yield aside
        flush(aside)
        aside.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StepDistillError(
            f"could not write {file} ({error}): what was finished before it is kept; free some "
            "disk space, or mend the folder, and give the same command again"
        ) from error


def save_whole(tensors: Mapping[str, Tensor], file: Path, told: Mapping[str, str]) -> None:
    """``tensors`` as safetensors, with ``told`` as its metadata. StepDistillError as above."""
    with whole(file) as aside:
        save_file({name: own.contiguous() for name, own in tensors.items()}, aside, dict(told))


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of its bytes."""
    return sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


def hold(lock: Path) -> IO[str]:
    """Hold a lock file until it is closed, and make its folder; UserError if another holds it."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise UserError(f"cannot make the folder {lock.parent}: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(
            f"{lock.parent} is in use by another process: wait for it, or give another folder"
        ) from error
    return file


def check_room(folder: Path, size: int, what: str) -> None:
    """UserError where the disk of ``folder`` has no room for ``size`` bytes of ``what``."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{what} take {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB left: name "
            "another folder, or make room there"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few keys whose values differ, nested ones dotted."""
    old, new = _flat(old), _flat(new)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    listed = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys[:5]]
    return "; ".join(listed + [f"and {len(keys) - 5} more"] * (len(keys) > 5))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{k}".rstrip("."): v for k, v in inner.items()}
    return flat
