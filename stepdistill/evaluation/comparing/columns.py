"""Columns of estimates: which row is best, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...metrics.metric_names import MS, SPEED, Metric, in_order
from .estimates import Estimate, told_apart
from .rows import Row
from .wording import device_words, listed

BEST, LEVEL = "best", "not distinguishable from the best"


@dataclass(frozen=True)
class Column:
    """One metric of all rows; ``marks`` by the place of the row: BEST, or LEVEL with it."""

    metric: Metric
    estimates: Sequence[Estimate | None]
    marks: Mapping[int, str]

    def verdict(self, labels: Sequence[str]) -> str | None:
        """In words, which row is best and how sure that is.

        None where nothing is compared, or no interval tells the best from any other.
        """
        if BEST not in self.marks.values():
            return None
        best = next(i for i, mark in self.marks.items() if mark == BEST)
        others = [i for i, one in enumerate(self.estimates) if one is not None and i != best]
        level = [labels[i] for i in others if self.marks.get(i) == LEVEL]
        top = self.estimates[best]
        assert top is not None
        unsure = [labels[i] for i in others if told_apart(top, self._of(i)) is None]
        level = [label for label in level if label not in unsure]
        said = f"{self.metric.label} ({self.metric.direction}): {labels[best]} has the best value"
        if unsure == [labels[i] for i in others]:
            return None
        if level:
            said += f"; not distinguishable from it: {listed(level)}"
        if unsure:
            said += f"; no interval to tell it from {listed(unsure)}"
        if not level and not unsure:
            said += ", distinguishable from every other"
        return said + "."

    def _of(self, row: int) -> Estimate:
        found = self.estimates[row]
        assert found is not None
        return found


def metric_columns(rows: Sequence[Row]) -> list[Column]:
    """Of each metric that a row has, in the order of the list of metrics."""
    found = in_order({name for row in rows for name in row.values})
    return [column(metric, [row.values.get(metric.name) for row in rows]) for metric in found]


def speed_columns(rows: Sequence[Row]) -> list[Column]:
    """Times and memory. No time is marked where they were measured in different places, and no
    memory ever: what is counted is the process's or the device's, not the model's alone."""
    columns = []
    for metric in SPEED:
        own = [row.speeds.get(metric.name) for row in rows]
        places = {place(row, metric) for row, one in zip(rows, own, strict=True) if one}
        made = column(metric, own)
        columns.append(made if len(places) < 2 else replace(made, marks={}))
    return columns


def place(row: Row, metric: Metric) -> str:
    """Where a row's time was measured; "" if it was not."""
    where = row.measured_on
    if where is None:
        return ""
    device, batch = where
    words = device_words(device)
    if metric is not MS or batch is None:
        return words
    return f"{words}, {batch} images at a time"


def column(metric: Metric, estimates: Sequence[Estimate | None]) -> Column:
    """Mark the best of at least two, and those that cannot be told from it.

    Compared is how far a value falls short of the metric's goal.
    """
    known = [(i, one) for i, one in enumerate(estimates) if one is not None]
    if metric.goal is None or len(known) < 2:
        return Column(metric, estimates, {})
    short = {i: metric.shortfall(one.value) for i, one in known}
    best, top = min(known, key=lambda pair: short[pair[0]])
    marks = {best: BEST}
    for i, one in known:
        equal = short[i] == short[best]
        if i != best and (equal or told_apart(top, one, short[i] - short[best]) is False):
            marks[i] = LEVEL
    return Column(metric, estimates, marks)
