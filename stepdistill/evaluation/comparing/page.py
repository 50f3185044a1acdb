"""The comparison as one self-contained page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from ...metrics.metric_names import MS, MS_ONE, Metric
from ...pages import environment
from .columns import Column
from .drawing import draw
from .facts import short
from .front import Point, Tradeoff
from .printed import heading
from .records import Record
from .samples import Grid, grid, shortened
from .tables import Table
from .wording import device_words

OPEN = 2  # metrics whose plots are shown at once; those of the others are folded


@dataclass(frozen=True)
class Plots:
    """The trade-offs of one metric: against calls, and against times."""

    metric: Metric
    drawings: Sequence[tuple[str, Markup]]  # what it is drawn against, the drawing


@dataclass(frozen=True)
class Shown:
    """What the page shows of a table."""

    number: int
    table: Table
    heading: str
    facts: Mapping[str, str]
    plots: Sequence[Plots]
    samples: Grid


def render(tables: Sequence[Table]) -> str:
    """The page as HTML. UserError if a sample picture is damaged."""
    shown = [_shown(i, table) for i, table in enumerate(tables, start=1)]
    metrics = {column.metric.name: column.metric for t in tables for column in t.metrics}
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            shown=shown,
            open=OPEN,
            shortened=shortened,
            unbroken=unbroken,
            metrics=list(metrics.values()),
            names=list(dict.fromkeys(r.records[0].name for table in tables for r in table.rows)),
            records=[about(r) for table in tables for row in table.rows for r in row.records],
        )
    )


def unbroken(words: str) -> Markup:
    """``words`` with each option of a command, as --repeats 3, kept on one line."""
    option = r'<code class="option">\g<0></code>'
    return Markup(re.sub(r"--\w+ \d+", option, str(escape(words))))


def _shown(number: int, table: Table) -> Shown:
    said = table.section.shown
    return Shown(number, table, heading(table), said, list(plots(number, table)), grid(table.rows))


def plots(number: int, table: Table) -> Iterator[Plots]:
    """Those of each metric with a direction that at least one row with a cost has."""
    for column in table.metrics:
        if column.metric.goal is not None:
            drawn = [
                (tradeoff.cost, draw(tradeoff, f"{number} {column.metric.name} {i}"))
                for i, tradeoff in enumerate(tradeoffs(table, column))
            ]
            if drawn:
                yield Plots(column.metric, drawn)


def tradeoffs(table: Table, column: Column) -> Iterator[Tradeoff]:
    """The metric against network calls, and against times: a plot for each place of measuring.

    Times are those of whole calls, or of one image where there are no others.
    """
    calls = _tradeoff(table, column, "network calls an image", [row.calls for row in table.rows])
    if calls.points:
        yield calls
    timed = MS if any(MS.name in row.speeds for row in table.rows) else MS_ONE
    where = {row.measured_on: None for row in table.rows if timed.name in row.speeds}
    for place in where:
        costs = [
            row.speeds[timed.name].value
            if row.measured_on == place and timed.name in row.speeds
            else None
            for row in table.rows
        ]
        device = (
            ""
            if place is None or len(where) == 1
            else f" ({device_words(place[0])}, batch {place[1]})"
        )
        name = "milliseconds an image" if timed is MS else "milliseconds of one image"
        found = _tradeoff(table, column, name + device, costs)
        if found.points:
            yield found


def _tradeoff(table: Table, column: Column, cost: str, costs: Sequence[float | None]) -> Tradeoff:
    points = [
        Point(row.label, i + 1, own, quality, row.is_teacher)
        for i, (row, own) in enumerate(zip(table.rows, costs, strict=True))
        if own is not None and (quality := column.estimates[i]) is not None
    ]
    return Tradeoff(column.metric, cost, points)


def about(record: Record) -> dict[str, Any]:
    """Where a record is from, for the list at the end of the page; "" for what it does not say."""
    sampling, versions = record.sampling, record.part("versions")
    hashes = record.model.get("sha256") or {}
    settings = ("seed", "steps", "guidance_scale", "dtype", "batch_size")
    return {
        "record": record.place,
        "model": record.model.get("path") or record.name,
        "pipeline": record.model.get("pipeline") or "",
        "weights": ", ".join(f"{file} {short(value)}" for file, value in hashes.items()),
        "sampling": ", ".join(
            f"{name.replace('_', ' ')} {sampling[name]}"
            for name in settings
            if sampling.get(name) is not None
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": short(record.content.get("commit") or "")[:12],
        "date": record.content.get("date") or "",
    }
