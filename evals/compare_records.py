"""Evaluations side by side: a table, and a page with plots and samples.

stepdistill eval compare teacher.json student.json --output compare.html
python -m stepdistill.evals.compare_records runs/*/eval.json --markdown --json rows.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.evaluation.comparing.page import render
from stepdistill.evaluation.comparing.printed import as_json, markdown, text
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.comparing.tables import tables
from stepdistill.pages import write_page


@dataclass(frozen=True)
class Options:
    """Compare records of stepdistill eval.

    Args:
        records: files that stepdistill eval wrote: .json, or .jsonl of one record a line
        output: the page to write, one file that needs nothing beside it
        json: a file for the table's rows as JSON
        markdown: print the table as Markdown, for a README
        each_alone: give records of one protocol that differ in what decides their values (number
            of images, reference, extractor) a table each, instead of refusing them
    """

    records: tuple[str, ...]
    output: str | None = None
    json: str | None = None
    markdown: bool = False
    each_alone: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; write the page and the rows where they are asked for."""
    program = "stepdistill eval compare"
    options = parse(program, (Options,), {}, arguments, positional=True).get(Options)
    made = tables(read_records(options.records), options.each_alone)
    if options.output is not None:
        write_page(render(made), Path(options.output), "page")
    if options.json is not None:
        rows = json.dumps(as_json(made), indent=1, allow_nan=False, ensure_ascii=False)
        write_page(rows + "\n", Path(options.json), "rows")
    print(markdown(made) if options.markdown else text(made))


if __name__ == "__main__":
    guarded(main)
