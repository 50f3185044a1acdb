"""What checkpoints and precomputed shards are written with: flushing, a lock, and comparing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .errors import UserError


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
