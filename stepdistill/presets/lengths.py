"""The same preset in another number of iterations, as ``stepdistill compare`` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import of

# settings that count iterations of a run, and are of its length
OF_LENGTH = ("lr_warmup", "lr_decay", "method.double_every", "method.ramp", "path.interval")
# between checkpoints of a cell; nothing is measured or drawn on the way
CELL = {"save_every": 100, "sample_every": 0, "evaluate_every": 0}


def compared(teacher: str, method: str, steps: int) -> dict[str, Any]:
    """What a method is compared with; {} if there is no preset."""
    own = of(teacher, method, steps)
    return {**own, **CELL} if own else {}


def scaled(settings: Mapping[str, Any], iterations: int) -> dict[str, Any]:
    """The same run in so many iterations: what counts them keeps its part of the whole."""
    part = iterations / settings["max_steps"]
    counted = {key: settings[key] for key in OF_LENGTH if settings.get(key)}
    shorter = {key: max(1, round(part * count)) for key, count in counted.items()}
    return {**settings, **shorter, "max_steps": iterations}
