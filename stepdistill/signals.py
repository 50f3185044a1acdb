"""SIGTERM and SIGINT ask a run to stop after the iteration it is in, on all ranks together."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator


class StopSignals:
    """While entered, the signals are noted instead of obeyed; after, handlers are as they were."""

    def __init__(self) -> None:
        self.noted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: signals go elsewhere
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def asked(self, accelerator: Accelerator) -> bool:
        """Has any rank been asked to stop? All ranks must ask, and get the same answer."""
        if accelerator.num_processes == 1:
            return self.noted
        noted = torch.tensor(float(self.noted), device=accelerator.device)
        return bool(accelerator.reduce(noted, "sum").item() > 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
