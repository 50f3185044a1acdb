"""Compare methods: train each with an equal budget of network calls, and measure the students.

stepdistill compare --methods dmd2 ect --budget 2e6 --output runs/methods
stepdistill compare --methods dmd2 --steps 1 --seeds 0 --budget 3e5 --output runs/look --dry_run
stepdistill compare --methods fdiv --steps 1 --budget 8e6 --settings method.gan_weight=0.5 \
    --output runs/long
stepdistill eval compare runs/methods/records/*.json --output methods.html

The same command goes on where a killed one was, and leaves finished cells as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cells.cell import RECORDS, Cell, cells
from stepdistill.cells.given import given_settings
from stepdistill.cells.measuring import measure
from stepdistill.cells.table import groups, markdown
from stepdistill.cells.tasks import Asked, listing, plan
from stepdistill.cells.training import train
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import NonFiniteError
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.options import writable
from stepdistill.files import whole
from stepdistill.signals import StopSignals

TABLE = "table.md"  # in the output


@dataclass(frozen=True)
class Options:
    """Compare methods: one training a method, number of steps and seed, of equal network calls.

    Args:
        methods: one or more of stepdistill methods
        budget: network calls a cell: a sample's forward is one, its backward two more, of teacher,
            critic and generator alike; pairs of noise and sample that a method needs count too
        output: the folder: TEACHER/METHOD-STEPS-SEED are runs, records are of stepdistill eval,
            table.md and table.json their summary
        teacher: a built-in one: digits, digits-flow or digits-t2i
        steps: of the students
        seeds: of training
        num: samples a student is measured on; default: the protocol's
        minutes: processor time after which a cell is stopped, and measured as it is; default: none
        pairs: noise-image pairs for a method that needs them, made once a seed
        settings: options of train in place of the presets', as NAME=VALUE, for every method; what
            counts iterations is of a preset's max_steps, and grows with the budget as it does
        dry_run: print the cells, their iterations and network calls, and leave
    """

    methods: tuple[str, ...]
    budget: float
    output: str
    teacher: str = "digits"
    steps: tuple[int, ...] = (1, 4)
    seeds: tuple[int, ...] = (0, 1, 2)
    num: int | None = None
    minutes: float | None = None
    pairs: int = 5_000
    settings: tuple[str, ...] = ()
    dry_run: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what will be done, do it, and write the table."""
    options = parse("stepdistill compare", (Options,), {}, arguments).get(Options)
    asked = Asked(
        methods=tuple(name for one in options.methods for name in one.split(",") if name),
        teacher=options.teacher,
        steps=options.steps,
        seeds=options.seeds,
        budget=options.budget,
        output=Path(options.output),
        num=options.num,
        minutes=options.minutes,
        pairs=options.pairs,
        settings=given_settings(options.settings),
    )
    planned = plan(asked)
    print(listing(planned, asked.seeds), flush=True)
    left = [cell for cell in cells(asked, planned.tasks) if not cell.is_done()]
    if options.dry_run:
        return
    writable(asked.output / TABLE)
    broken: list[str] = []
    with StopSignals() as signals:
        for number, cell in enumerate(left, start=1):
            print(f"cell {number} of {len(left)} left: {cell.folder}", flush=True)
            try:
                done = made(cell)
            except NonFiniteError as error:
                broken.append(f"{cell.name}: {error}")
                print(broken[-1], file=sys.stderr)
                continue
            if not done or signals.noted:
                print("stopped; the same command goes on")
                return
    print(summary(asked.output))
    if broken:
        raise NonFiniteError(f"not all cells could be trained: {'; '.join(broken)}")


def made(cell: Cell) -> bool:
    """Train and measure a cell; False if it was asked to stop."""
    spent = train(cell)
    record = None if spent is None else measure(cell, spent)
    if record is None:
        return False
    told = record["cell"]
    stopped = f", {record['notes'][-1]}" if told["stopped"] else ""
    print(f"{cell.name}: ratio {told['fid_ratio']:.2f}{stopped}", flush=True)
    return True


def summary(output: Path) -> str:
    """The Markdown table of all records there, written beside them as Markdown and as JSON."""
    found = groups(read_records(sorted(map(str, (output / RECORDS).glob("*.json")))))
    text, values = markdown(found), [group.json() for group in found]
    for name, content in ((TABLE, text), ("table.json", json.dumps(values, indent=1))):
        with whole(output / name) as aside:
            aside.write_text(content + "\n")
    return text


if __name__ == "__main__":
    guarded(main)
