"""The run folder: one process at a time, a log of JSON lines, samples and checkpoints.

runs/NAME/
  config.yaml  metrics.jsonl  samples/  checkpoints/NNNNNN/  student/  lora/  report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import StepDistillError, UserError


class RunFolder:
    """Holds the folder's lock while entered; only the main process of a launch enters it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def held(self) -> bool:
        """True while entered."""
        return self._lock is not None

    @property
    def checkpoints(self) -> Path:
        """Where ``NNNNNN/`` folders lie."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where the fixed-seed grids lie."""
        return self.path / "samples"

    @property
    def student(self) -> Path:
        """The exported diffusers folder."""
        return self.path / "student"

    @property
    def lora(self) -> Path:
        """The exported LoRA."""
        return self.path / "lora"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    def __enter__(self) -> RunFolder:
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.path}: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(
                f"{self.path} is in use by another process: wait for it, or give another --output"
            ) from error
        self._lock = lock
        _let_go_in_children(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let go of the lock, if it is held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from error

    def rewind(self, iteration: int) -> None:
        """Drop the lines after ``iteration``, and a torn one: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        lines = read_metrics(self.metrics)
        kept = [line for line in lines if line["iteration"] <= iteration]
        aside = self.metrics.with_suffix(".partial")
        try:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            aside.replace(self.metrics)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> StepDistillError:
        return StepDistillError(
            f"could not write {self.metrics}: {error}. Checkpoints are whole; mend it and run the "
            "same command again"
        )


def _let_go_in_children(folder: RunFolder) -> None:
    """Forked children (data loading) must not keep the lock of a run that was killed."""
    known = weakref.ref(folder)

    def release() -> None:
        run = known()
        if run is not None:
            run.release()

    os.register_at_fork(after_in_child=release)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    records = []
    lines = path.read_text().split("\n")
    for line in lines[:-1]:  # a whole line ends in a newline
        if line:
            records.append(json.loads(line))
    return records
