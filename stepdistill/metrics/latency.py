"""Milliseconds an image, of whole calls; and the clock that work is timed by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def ms_per_image(
    calls: Sequence[Callable[[], object]], batch_size: int, rounds: int = 5
) -> list[float]:
    """Of each of ``calls``: the median over rounds, over ``batch_size``.

    In a round each is repeated for a second, at least once, and its median taken. They take turns,
    so that a machine that slows down does not change their ratios.
    """
    for call in calls:
        call()  # does not count
    seconds = [[_median_seconds(call) for call in calls] for _ in range(rounds)]
    return [1000 * statistics.median(own) / batch_size for own in zip(*seconds, strict=True)]


def work_clock() -> float:
    """Seconds of the processor, which others on the machine do not change; with a GPU those of the
    clock, once all that was asked of it is done."""
    return _now() if torch.cuda.is_available() else time.process_time()


def _median_seconds(call: Callable[[], object]) -> float:
    seconds: list[float] = []
    while sum(seconds) < 1:
        began = _now()
        call()
        seconds.append(_now() - began)
    return statistics.median(seconds)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
