"""Render the tables of docs/methods.md: knobs from the settings of each method, and figures.

python -m stepdistill.evals.method_pages            # rewrite docs/methods.md between its markers
python -m stepdistill.evals.method_pages --check    # exit 2 if it differs
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepdistill.evals.method_figures import compared, cost, forgetting, modes

from stepdistill.cells.table import Group, groups, markdown
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.fields import options as options_of
from stepdistill.fields import shown
from stepdistill.methods import METHODS
from stepdistill.methods.matching import MatchingConfig


@dataclass(frozen=True)
class Options:
    """Render the tables of the methods' page.

    Args:
        page: the file with a pair of markers for each table
        cells: the folder of the comparison's records
        records: the folder of what was measured of one method alone
        check: only compare
    """

    page: str = "docs/methods.md"
    cells: str = "evals/records/methods"
    records: str = "evals/records/matching"
    check: bool = False


def knobs(kind: type[Any], besides: type[Any] | None = None) -> str:
    """One row a setting: its option, its default, and the words beside it in the code.

    Settings that are as in ``besides``, which the page has shown, are left out.
    """
    defaults, known = defaults_of(kind), defaults_of(besides) if besides else {}
    lines = ["| option | default | |", "|---|---|---|"]
    for option in options_of(kind):
        default = defaults[option.name]
        if option.name not in known or known[option.name] != default:
            text = option.text.replace("|", "/")
            lines.append(f"| `--method.{option.name}` | {shown(default) or 'none'} | {text} |")
    return "\n".join(lines)


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """By the names of its fields."""
    return {f.name: f.default for f in dataclasses.fields(kind)}


def figures(name: str, measured: Sequence[Group], records: Path) -> str:
    """All that was measured of a method; the records beside the comparison are in ``records``."""
    found = [compared(name, measured)]
    own = {
        "fdiv": (
            ("mode_coverage.json", partial(modes, plot=f"../{records}/mode_coverage.png")),
            ("step_cost.json", cost),
        ),
        "sfd": (("forgetting.json", forgetting),),
    }
    for file, shown_of in own.get(name, ()):
        if (records / file).exists():
            found.append(shown_of(json.loads((records / file).read_text())))
    return "\n\n".join(filter(None, found)) or "Not measured here."


def rendered(text: str, measured: Sequence[Group], records: Path) -> str:
    """The page with every table between its markers. UserError for a method that it lacks."""
    text = between(text, "knobs of all", knobs(MatchingConfig))
    text = between(text, "all compared", markdown(measured))
    for name, method in METHODS.items():
        shared = MatchingConfig if issubclass(method.Config, MatchingConfig) else None
        text = between(text, f"knobs of {name}", knobs(method.Config, shared))
        text = between(text, f"figures of {name}", figures(name, measured, records))
    return text


def between(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers ``name``; UserError if they are not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"the page lacks the markers {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Put each table between its markers."""
    options = parse("stepdistill.evals.method_pages", (Options,), {}, arguments).get(Options)
    page = Path(options.page)
    text = page.read_text()
    cells = [str(path) for path in sorted(Path(options.cells).glob("*.json"))]
    wanted = rendered(text, groups(read_records(cells)), Path(options.records))
    if options.check and wanted != text:
        raise UserError(f"{page} is not what the code says: run this without --check")
    if wanted != text:
        page.write_text(wanted)


if __name__ == "__main__":
    guarded(main)
