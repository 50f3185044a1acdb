"""The published settings that ship as config files.

stepdistill recipes                                      # their names, and what each one is
stepdistill recipes sdxl-4step-lora-24gb > recipe.yaml   # a copy to train with, and to edit
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
USAGE = "usage: stepdistill recipes [NAME]"


def recipes() -> dict[str, Path]:
    """{name: file} of all recipes."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def main(arguments: Sequence[str] | None = None) -> None:
    """List them, or print one. UserError for a name that there is none of."""
    given = sys.argv[1:] if arguments is None else arguments
    found = recipes()
    if not given:
        width = max(map(len, found))
        for name, path in found.items():
            print(f"{name:{width}}  {path.read_text().splitlines()[0].removeprefix('# ')}")
    elif given[0] in ("-h", "--help"):
        print(f"{USAGE}\n{__doc__}")
    elif len(given) > 1 or given[0] not in found:
        raise UserError(f"{USAGE}, with NAME one of {', '.join(found)}")
    else:
        print(found[given[0]].read_text(), end="")


if __name__ == "__main__":
    guarded(main)
