"""Render README's table of results from the JSON records in evals/records/.

python -m stepdistill.evals.tables            # rewrite README.md between its markers
python -m stepdistill.evals.tables --check    # exit 1 if README.md differs
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Options:
    """Render README's table of results.

    Args:
        readme: the file with the two markers
        records: the folder of results.json files, one a run
        check: only compare
    """

    readme: str = "README.md"
    records: str = "evals/records"
    check: bool = False


def table(records: list[dict[str, Any]]) -> str:
    """One row for the teacher and one for each kind of run and number of calls."""
    teacher = records[0]["teacher"]
    lines = [
        "| model | calls | seeds | Frechet distance | ratio | class accuracy | speed-up |",
        "|---|---|---|---|---|---|---|",
        f"| teacher, Heun {teacher['steps']} steps | {teacher['nfe']} | 1 | {teacher['fid']:.5f} "
        f"| 1 | {teacher['class_accuracy']:.2f} % | 1 |",
    ]
    groups: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for record in records:
        for row in record["students"]:
            groups.setdefault((record["long"], row["nfe"]), []).append(row)
    for (long, nfe), rows in sorted(groups.items()):
        kind = "`quickstart --long`" if long else "`quickstart`"
        columns = [_spread(rows, key) for key in ("fid", "fid_ratio", "class_accuracy", "speed_up")]
        fid, ratio, accuracy, speed = columns
        lines.append(f"| {kind} | {nfe} | {len(rows)} | {fid} | {ratio} | {accuracy} % | {speed} |")
    count = teacher["num_samples"]
    lines += [
        "",
        f"{count:,} samples a figure, mean ± standard deviation over training seeds. A perfect "
        f"model scores {records[0]['fid_floor']:.5f} at this count; the ratio, student to teacher, "
        "is taken above that floor.",
    ]
    return "\n".join(lines)


def _spread(rows: list[dict[str, Any]], key: str) -> str:
    digits = {"fid": 5, "fid_ratio": 2, "class_accuracy": 2, "speed_up": 1}[key]
    values = [row[key] for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the table between the markers."""
    options = parse("stepdistill.evals.tables", (Options,), {}, arguments).get(Options)
    paths = sorted(Path(options.records).glob("*.json"))
    if not paths:
        raise UserError(f"{options.records} holds no records")
    readme = Path(options.readme)
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme} lacks the markers {BEGIN} and {END}")
    rendered = table([json.loads(path.read_text()) for path in paths])
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    wanted = f"{before}{BEGIN}\n{rendered}\n{END}{after}"
    if options.check and wanted != text:
        raise UserError(f"{readme} is not what the records say: run this without --check")
    if wanted != text:
        readme.write_text(wanted)
    print(rendered, file=sys.stdout)


if __name__ == "__main__":
    guarded(main)
