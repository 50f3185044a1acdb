"""Merge two students of one teacher by interpolating their weights, as SwiftBrush v2 does.

stepdistill merge runs/full runs/lora --output merged                # half of each
stepdistill merge runs/full runs/lora --weight 0.3 --output merged   # 0.7 of the first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.merging import merge


@dataclass(frozen=True)
class Options:
    """Interpolate the weights of two students, and write the result as a diffusers folder.

    Args:
        first: a student's folder, or the run that made it
        second: another of the same teacher, with the same steps
        weight: of the second, in [0, 1]; the first has the rest
        output: (needed) the folder to write
        dtype: of the weights that are written: float32, bfloat16 or float16
    """

    first: str
    second: str
    weight: float = 0.5
    output: str = ""
    dtype: str = "float32"


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge, and say where it lies."""
    options = parse("stepdistill merge", (Options,), {}, arguments, positional=True).get(Options)
    if not options.output:
        raise UserError("merge needs --output, the folder to write")
    first, second, output = map(Path, (options.first, options.second, options.output))
    merge(first, second, options.weight, output, options.dtype)
    print(f"{output} ({1 - options.weight:g} {first} + {options.weight:g} {second})")


if __name__ == "__main__":
    guarded(main)
