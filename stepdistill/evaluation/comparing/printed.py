"""Tables as text for a terminal, as Markdown for a README, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .columns import Column
from .facts import NUMBER, REFERENCE, TOLD, short
from .rows import Row
from .tables import Table

HEADS = ("model", "steps", "calls", "seeds")
APART = "These tables may not be compared with each other."


def text(tables: Sequence[Table]) -> str:
    """Aligned columns, with what is to be known below each table."""
    return "\n\n".join([_text(table) for table in tables] + [APART] * (len(tables) > 1))


def markdown(tables: Sequence[Table]) -> str:
    """A Markdown table a section, notes as a numbered list."""
    return "\n\n".join([_markdown(table) for table in tables] + [APART] * (len(tables) > 1))


def heading(table: Table) -> str:
    """A section's protocol and what its values depend on, in one line."""
    said = table.section.said
    words = [f"{said[NUMBER] or 'an unknown number of'} images"]
    words += [f"told {said[TOLD]}"] * bool(said[TOLD])
    references = {value: None for fact, value in said.items() if fact.what == REFERENCE}
    words += [f"reference {short(value)}" for value in references]
    return f"{table.section.protocol}: {', '.join(words)}"


def _text(table: Table) -> str:
    head = [*HEADS, *(column.metric.label for column in table.columns)]
    lines = [head, ["", "", "", "", *(column.metric.arrow for column in table.columns)]]
    for i, row in enumerate(table.rows):
        notes = "".join(f" [{number}]" for number in table.numbers(row))
        lines.append([row.name + notes, *(cell.text for cell in table.cells(i))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    marks = "* best of its column, ~ not distinguishable from it."
    return "\n".join([heading(table), *shown, *[marks] * table.marked, *_below(table)])


def _markdown(table: Table) -> str:
    columns = [f"{column.metric.label} {column.metric.arrow}" for column in table.columns]
    head = [escaped(word.strip()) for word in (*HEADS, *columns)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for i, row in enumerate(table.rows):
        notes = "".join(f" [{number}]" for number in table.numbers(row))
        lines.append([escaped(row.name + notes), *(cell.markdown for cell in table.cells(i))])
    shown = [f"| {' | '.join(line)} |" for line in lines]
    marks = ["Bold is the best of its column, ≈ is not distinguishable from it."] * table.marked
    below = [escaped(line) for line in (heading(table) + ".", *marks, *_below(table))]
    return "\n".join(shown) + "\n\n" + "\n\n".join(below)


def _below(table: Table) -> list[str]:
    notes = [f"[{i}] {note}" for i, note in enumerate(table.notes, start=1)]
    return [
        line for line in (table.intervals(), table.places(), *table.published(), *notes) if line
    ]


def escaped(word: str) -> str:
    """Without the signs that Markdown would read as a table's or as a link's."""
    return word.replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def as_json(tables: Sequence[Table]) -> dict[str, Any]:
    """The rows of each table as plain values, None for what was not measured."""
    return {"format": 1, "tables": [_table_json(table) for table in tables]}


def _table_json(table: Table) -> dict[str, Any]:
    return {
        "protocol": table.section.protocol,
        "facts": {fact.words: value for fact, value in table.section.said.items()},
        "rows": [_row_json(table, i, row) for i, row in enumerate(table.rows)],
    }


def _row_json(table: Table, i: int, row: Row) -> dict[str, Any]:
    where = row.measured_on
    return {
        "label": row.label,
        "model": row.records[0].name,
        "role": row.records[0].model.get("role"),
        "steps": row.steps,
        "calls": row.calls,
        "seeds": row.seeds,
        "device": where[0] if where else None,
        "batch_size": where[1] if where else None,
        "speed": {one.metric.name: _value_json(one, i) for one in table.speeds},
        "metrics": {one.metric.name: _value_json(one, i) for one in table.metrics},
        "notes": list(row.notes),
        "records": [record.place for record in row.records],
    }


def _value_json(column: Column, i: int) -> dict[str, Any] | None:
    one = column.estimates[i]
    if one is None:
        return None
    return {
        "value": one.value,
        "half_width": one.half,
        "interval": one.by,
        "seeds": one.seeds,
        "mark": column.marks.get(i),
    }
