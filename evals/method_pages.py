"""Render the tables of docs/methods.md: knobs from the settings of each method, and figures.

python -m stepdistill.evals.method_pages            # rewrite docs/methods.md between its markers
python -m stepdistill.evals.method_pages --check    # exit 2 if it differs
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepdistill.cells.table import Group, groups, spread_text
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
        records: the folder of the comparison's cells
        check: only compare
    """

    page: str = "docs/methods.md"
    records: str = "evals/records/methods"
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


def figures(name: str, measured: Sequence[Group]) -> str:
    """One row a teacher and a number of calls, and where it stands among the methods compared."""
    lines = [
        "| teacher | budget | calls | seeds | ratio ↓ | place | accuracy, % ↑ | diversity → 1 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group in measured:
        for steps in sorted({row.steps for row in group.rows}):
            peers = [row for row in group.rows if row.steps == steps]
            for place, row in enumerate(peers, 1):
                if row.method == name:
                    ratio = spread_text(row.values["fid_ratio"], 2)
                    accuracy = spread_text(row.values["accuracy"], 2)
                    diversity = spread_text(row.values["diversity"], 3)
                    cells = (ratio, f"{place} of {len(peers)}", accuracy, diversity)
                    about = f"{group.teacher} | {group.budget:,.0f} | {steps} | {len(row.seeds)}"
                    lines.append(f"| {about} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not among the methods compared."


def rendered(text: str, measured: Sequence[Group]) -> str:
    """The page with every table between its markers. UserError for a method that it lacks."""
    text = between(text, "knobs of all", knobs(MatchingConfig))
    for name, method in METHODS.items():
        shared = MatchingConfig if issubclass(method.Config, MatchingConfig) else None
        text = between(text, f"knobs of {name}", knobs(method.Config, shared))
        text = between(text, f"figures of {name}", figures(name, measured))
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
    cells = [str(path) for path in sorted(Path(options.records).glob("*.json"))]
    wanted = rendered(text, groups(read_records(cells)))
    if options.check and wanted != text:
        raise UserError(f"{page} is not what the code says: run this without --check")
    if wanted != text:
        page.write_text(wanted)


if __name__ == "__main__":
    guarded(main)
