"""Settings for the built-in worlds: named functions; each file says how they were found.

A preset replaces the defaults of ``train METHOD --teacher NAME``; options given still win, and the
resolved settings are written to the run's config.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import captions, digits

# the number of steps -> settings
Preset = Callable[[int], dict[str, Any]]

PRESETS: dict[tuple[str, str], Preset] = {
    **{("digits", method): preset for method, preset in digits.PRESETS.items()},
    **{("digits-flow", method): preset for method, preset in captions.FLOW.items()},
    **{("digits-t2i", method): preset for method, preset in captions.T2I.items()},
}
SEVERAL = 4  # steps, in the words of --help


def of(teacher: str, method: str, steps: int) -> dict[str, Any]:
    """The preset for a built-in teacher, a method and a number of steps; {} if there is none."""
    preset = PRESETS.get((teacher, method))
    return preset(steps) if preset is not None else {}


def described(method: str) -> str:
    """For --help: what the presets of ``method`` set, world by world."""
    said = []
    for (world, own), preset in PRESETS.items():
        if own == method:
            said.append(_sentence(f"With --teacher {world}", preset(1)))
            if preset(SEVERAL) != preset(1):
                said.append(_sentence(f"In {SEVERAL} steps", preset(SEVERAL)))
    return " ".join(said)


def _sentence(where: str, values: dict[str, Any]) -> str:
    listed = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"{where} the defaults are: {listed}."
