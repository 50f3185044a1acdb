"""The clock of a cell: how long it has trained, over all its starts, and when it has to stop."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from ..ema import EMA
from ..files import whole
from ..methods.base import Method

KEPT = ("iterations", "timed", "clock", "processor")


class Meter:
    """A hook of ``fit`` that times iterations, by the clock and by the processor.

    The first iteration of each start, which warms up, counts as the mean of the others. What was
    timed is kept in ``file`` every ``save_every`` iterations, for a start that goes on. Past
    ``minutes`` of the processor (None: never) it asks the run to stop as a signal would: after an
    iteration, which is saved.
    """

    def __init__(self, file: Path, save_every: int, minutes: float | None) -> None:
        self.file, self.save_every, self.minutes = file, save_every, minutes
        kept = json.loads(file.read_text()) if file.exists() else {}
        self.iterations = int(kept.get("iterations", 0))
        self.timed = int(kept.get("timed", 0))
        self.clock = float(kept.get("clock", 0.0))
        self.processor = float(kept.get("processor", 0.0))
        self.asked = False
        self._last: tuple[float, float] | None = None

    def __call__(self, iteration: int, method: Method, ema: EMA) -> None:
        """After each iteration."""
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.timed += 1
            self.clock += now[0] - self._last[0]
            self.processor += now[1] - self._last[1]
        self._last, self.iterations = now, iteration
        if iteration % self.save_every == 0:
            self.keep()
        if self.minutes is not None and self.timed and self.spent()[1] >= 60 * self.minutes:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)

    def keep(self) -> None:
        """Write what was timed."""
        kept = {name: getattr(self, name) for name in KEPT}
        with whole(self.file) as aside:
            aside.write_text(json.dumps(kept) + "\n")

    def spent(self) -> tuple[float, float]:
        """(seconds by the clock, by the processor) of all iterations; NaN where none was timed."""
        if not self.timed:
            return float("nan"), float("nan")
        part = self.iterations / self.timed
        return part * self.clock, part * self.processor
