"""How fast a model samples: of the evaluation's own batches, and of one image at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from ..models.subject import Subject
from ..running.engine import Order
from .provenance import device_name, peak_memory

ROUNDS = 3


def speed(
    subject: Subject, order: Order, facts: Sequence[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """Milliseconds an image of whole calls, their network calls, and the peak of memory.

    ``ms_per_image`` is the median over the evaluation's largest batches, its first left out where
    there are more; ``batch_size`` are the images of one call in it. ``ms_one_image`` is the median
    of calls for one image.
    """
    timed = [(count, seconds) for fact in facts for count, seconds in fact["seconds"]]
    largest = max(count for count, _ in timed)
    full = [seconds for count, seconds in timed if count == largest]
    kept = full[1:] or full
    alone, calls = _one_image(subject, order)
    peak, of = peak_memory(device, max(fact.get("peak_bytes", 0) for fact in facts))
    return {
        "calls": calls,
        "ms_per_image": 1000 * statistics.median(kept) / largest,
        "batch_size": 1 if subject.model.is_called_alone(subject.steps) else largest,
        "ms_one_image": 1000 * alone,
        "device": device_name(device),
        "peak_memory_bytes": peak,
        "memory_of": of,
    }


def _one_image(subject: Subject, order: Order) -> tuple[float, int]:
    """(median seconds of a call for one image, its network calls)."""
    rows = range(1)
    told, seconds = order.told_to(rows), []
    with subject.counting_calls() as calls:
        subject.sample(told, order.seeds(rows))
        count = calls()
    for _ in range(ROUNDS):
        _wait()
        began = time.perf_counter()
        subject.sample(told, order.seeds(rows))
        _wait()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
