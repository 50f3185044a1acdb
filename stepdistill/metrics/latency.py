"""Milliseconds an image, of whole calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def ms_per_image(call: Callable[[], object], batch_size: int, repeats: int = 5) -> float:
    """Median over ``repeats`` calls (after one that does not count), over ``batch_size``."""
    call()
    seconds = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds) / batch_size
