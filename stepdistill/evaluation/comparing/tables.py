"""The table of a section, and its cells in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...metrics.metric_names import MS
from .columns import BEST, LEVEL, Column, metric_columns, place, speed_columns
from .estimates import plain, written
from .published import published
from .records import Record
from .rows import Row, rows
from .sections import Section, sections

DASH = "–"


@dataclass(frozen=True)
class Cell:
    """A value as it is written, its interval ("" for none) and its mark ("" for none)."""

    value: str
    half: str = ""
    mark: str = ""

    @property
    def text(self) -> str:
        """On a terminal: * is the best, ~ cannot be told from it."""
        sign = {BEST: " *", LEVEL: " ~"}.get(self.mark, "")
        return f"{self.value}{' ± ' + self.half if self.half else ''}{sign}"

    @property
    def markdown(self) -> str:
        """Bold is the best, ≈ cannot be told from it."""
        text = f"{self.value} ± {self.half}" if self.half else self.value
        return f"**{text}**" if self.mark == BEST else text + " ≈" * (self.mark == LEVEL)


@dataclass(frozen=True)
class Table:
    """Rows of one section, with columns of speeds and of metrics."""

    section: Section
    rows: Sequence[Row]
    speeds: Sequence[Column]
    metrics: Sequence[Column]

    @property
    def columns(self) -> list[Column]:
        """Speeds that any row has, then metrics."""
        return [one for one in self.speeds if any(one.estimates)] + list(self.metrics)

    @property
    def labels(self) -> list[str]:
        """Of the rows."""
        return [row.label for row in self.rows]

    @property
    def names(self) -> list[str]:
        """Of the rows, beside their steps."""
        return [row.name for row in self.rows]

    @property
    def marked(self) -> bool:
        """Whether any value is the best of its column."""
        return any(column.marks for column in self.columns)

    @property
    def notes(self) -> list[str]:
        """All rows' notes, each once, in order: note i is numbered i + 1."""
        return list(dict.fromkeys(note for row in self.rows for note in row.notes))

    def numbers(self, row: Row) -> list[int]:
        """The numbers of a row's notes."""
        return [self.notes.index(note) + 1 for note in row.notes]

    def cells(self, i: int) -> list[Cell]:
        """Of row ``i``: steps, calls, seeds, and each column."""
        row = self.rows[i]
        own = [count(row.steps), count(row.calls), count(row.seeds)]
        return own + [cell(column, i) for column in self.columns]

    def verdicts(self) -> list[str]:
        """For each metric whose best value has an interval that tells, what can be said of it."""
        said = [column.verdict(self.labels) for column in self.metrics]
        return [words for words in said if words is not None]

    def intervals(self) -> str:
        """In words, what the intervals are and which values have none."""
        judged = [column for column in self.metrics if column.metric.goal is not None]
        found = [one for column in judged for one in column.estimates if one is not None]
        ways = {
            "seeds": "Student's t over the seeds of a row",
            "standard error": "1.96 standard errors that the record gives, where no seeds tell it",
        }
        how = "which of two such values is better may be chance"
        if not self.section.records[0].of_images:
            how += "; --repeats 3 gives an interval to each, --bootstrap 100 to Frechet distances"
        used = [words for by, words in ways.items() if any(one.by == by for one in found)]
        if not used:
            return f"No value has an interval: {how}."
        bare = any(one.half is None for one in found)
        without = f" A value without ± has none: {how}."
        return f"± is a 95 % interval: {'; '.join(used)}.{without * bare}"

    def published(self) -> list[str]:
        """The deviations that papers print, each metric's in a sentence."""
        return list(published(self.metrics, self.rows))

    def places(self) -> str:
        """Where the times were measured, in words; "" if none were."""
        timed = [row for row in self.rows if row.measured_on is not None]
        if not timed:
            return ""
        where = [(row.label, place(row, MS)) for row in timed]
        memory = [(row.label, row.memory_of) for row in timed if row.memory_of]
        if len({words for _, words in where}) == 1:
            said = f"Times were measured on {where[0][1]}."
        else:
            places = "; ".join(f"{label} on {words}" for label, words in where)
            said = f"Times measured in different places are not compared: {places}."
        if len({words for _, words in memory}) > 1:
            each = "; ".join(f"for {label} to {words}" for label, words in memory)
            return f"{said} Peak memory refers {each}."
        return f"{said} Peak memory refers to {memory[0][1]}." if memory else said


def tables(records: Sequence[Record], each_alone: bool) -> list[Table]:
    """One table a section; UserError as :func:`sections.sections` and :func:`rows.rows` say."""
    made = []
    for section in sections(records, each_alone):
        own = rows(section.records)
        made.append(Table(section, own, speed_columns(own), metric_columns(own)))
    return made


def cell(column: Column, i: int) -> Cell:
    """Row ``i`` of a column, a dash where it was not measured."""
    one = column.estimates[i]
    if one is None:
        return Cell(DASH)
    return Cell(*written(one), column.marks.get(i, ""))


def count(value: float | None) -> Cell:
    """A whole number, or what was recorded of it."""
    return Cell(DASH if value is None else plain(value))
