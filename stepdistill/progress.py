"""What a run tells while it goes on: a bar, the lines of metrics.jsonl, and trackers if any."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from .memory import peak_gb
from .runs import RunFolder


class Progress:
    """Entered for the length of a run of ``total`` iterations that goes on after ``first``.

    ``settings`` are shown by the trackers that the accelerator was made with. Only the main process
    writes.
    """

    def __init__(
        self,
        run: RunFolder,
        accelerator: Accelerator,
        first: int,
        total: int,
        batch_size: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.run, self.accelerator, self.batch_size = run, accelerator, batch_size
        self.first, self.total, self.settings = first, total, settings
        self._seconds, self._iterations = 0.0, 0

    def __enter__(self) -> Progress:
        hidden = None if self.accelerator.is_main_process else True  # None: hidden off a terminal
        self._bar = tqdm(total=self.total, initial=self.first, unit="it", disable=hidden)
        if self.accelerator.log_with:
            shown = {k: v for k, v in self.settings.items() if isinstance(v, int | float | str)}
            self.accelerator.init_trackers("tensorboard", config=shown)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self.accelerator.end_training()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around one iteration."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began
        self._iterations += 1
        self._bar.update()

    def training(self, iteration: int, terms: Mapping[str, float]) -> None:
        """Tell the terms of the losses, with the throughput since the last time and the memory."""
        images = self._iterations * self.batch_size
        rate = {"images_per_second": images / self._seconds, "memory_gb": peak_gb()}
        self._seconds, self._iterations = 0.0, 0
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in terms.items() if k.endswith("/loss")})
        self._tell(iteration, {**terms, **rate})

    def evaluation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Tell what an evaluation measured."""
        self._tell(iteration, {f"eval/{name}": value for name, value in metrics.items()})

    def _tell(self, iteration: int, record: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.log({"iteration": iteration, **record})
        if self.accelerator.log_with:
            self.accelerator.log(dict(record), step=iteration)
