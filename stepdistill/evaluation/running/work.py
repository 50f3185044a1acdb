"""The work of an evaluation on disk: one file a shard of samples, so that nothing is done twice.

Shards are cut by the sample's index alone. A process takes whole shards, and a killed evaluation
goes on with those that are missing; the metrics read them in order, whoever wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UserError, first_line
from ...files import differences, hold, save_whole, tensor_sha256, whole

NO_REPEAT = -1  # of shards beside those that the moments are taken over
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError)  # no metadata is None
LEAST = 16  # samples a shard; what a kill loses at most, a process, where batches are small


@dataclass(frozen=True)
class Shard:
    """Samples ``begin`` to ``end`` of all, of one ``repeat``."""

    number: int
    repeat: int
    begin: int
    end: int

    def batches(self, size: int) -> Iterator[range]:
        """The indices of its samples, ``size`` at a time."""
        for begin in range(self.begin, self.end, size):
            yield range(begin, min(begin + size, self.end))


def cut(num: int, repeats: int, batch_size: int) -> list[Shard]:
    """Shards of the fewest whole batches that make LEAST samples; none spans two repeats."""
    size = -(-LEAST // batch_size) * batch_size
    shards: list[Shard] = []
    for repeat in range(repeats):
        last = (repeat + 1) * num
        for begin in range(repeat * num, last, size):
            shards.append(Shard(len(shards), repeat, begin, min(begin + size, last)))
    return shards


@dataclass(frozen=True)
class WorkFolder:
    """Finished shards, and the settings they were made with."""

    path: Path

    @contextmanager
    def held(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder, or go on in it, and hold its lock inside.

        UserError for a folder in which samples were begun with other settings, or that is in use.
        """
        with hold(self.path / ".lock"):
            file = self.path / "settings.json"
            now = json.loads(json.dumps(settings))
            if not file.exists() or not self.begun.exists():
                with whole(file) as aside:
                    aside.write_text(json.dumps(now, indent=1) + "\n")
            elif (there := _settings(file)) != now:
                raise UserError(
                    f"{self.path} holds an evaluation that was begun otherwise "
                    f"({differences(there, now)}): give another --output, or remove that folder"
                )
            self.stop.unlink(missing_ok=True)
            yield

    @property
    def stop(self) -> Path:
        """A file that is there once any process was asked to stop."""
        return self.path / "stop"

    @property
    def begun(self) -> Path:
        """A file that is there once the first sample may have been written."""
        return self.path / "begun"

    def file(self, shard: int) -> Path:
        """Where a shard's results lie."""
        return self.path / f"{shard:06d}.safetensors"

    def write(self, shard: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Put a shard's results in place, complete or not at all, with the hash of each tensor.

        StepDistillError if there is no place for them.
        """
        told = {"facts": json.dumps(facts)}
        hashes = {f"sha256 {name}": tensor_sha256(tensor) for name, tensor in tensors.items()}
        save_whole(tensors, self.file(shard), {**told, **hashes})

    def read(self, shard: int, name: str) -> Tensor:
        """One tensor of a shard. UserError for a file that is missing, or not as it was written."""
        try:
            with safe_open(self.file(shard), "pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                hashed = opened.metadata()[f"sha256 {name}"]
        except UNREADABLE as error:
            raise self._damaged(shard, first_line(error)) from error
        if tensor_sha256(tensor) != hashed:
            raise self._damaged(shard, f"its {name} is not what was written")
        return tensor

    def facts(self, shard: int) -> dict[str, Any]:
        """What was told of a shard when it was written. UserError as for :meth:`read`."""
        try:
            with safe_open(self.file(shard), "pt") as opened:
                found: dict[str, Any] = json.loads(opened.metadata()["facts"])
        except UNREADABLE as error:
            raise self._damaged(shard, first_line(error)) from error
        return found

    def missing(self, shards: list[Shard]) -> list[Shard]:
        """Those that are not in place."""
        return [shard for shard in shards if not self.file(shard.number).is_file()]

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def _damaged(self, shard: int, why: str) -> UserError:
        return UserError(
            f"{self.file(shard)} is missing or damaged ({why}): remove it and give the same "
            "command again"
        )


def _settings(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: remove its folder to begin again") from error
    return found
