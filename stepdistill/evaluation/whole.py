"""Files that are whole or not there: written aside, flushed, renamed; and a full disk in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StepDistillError
from ..files import flush


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
