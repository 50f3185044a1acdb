"""The "+-" that papers print beside KID and the Inception Score, which is no interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .columns import Column
from .estimates import Estimate, written
from .rows import Row
from .schema import finite


def published(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each metric of which a record tells the deviation over subsets or splits.

    Each row is said with its first such record: neither value nor deviation is a mean over seeds.
    """
    for column in columns:
        said = [words for row in rows if (words := _of(row, column.metric.name))]
        if said:
            yield (
                f"Papers print {column.metric.label} with the standard deviation over parts of one "
                f"evaluation, which is no interval of it: {'; '.join(said)}."
            )


def _of(row: Row, metric: str) -> str | None:
    """The row's value and deviation, and over how many parts."""
    for record in row.records:
        details = record.part("details").get(metric, {})
        values, deviation = record.by_seed(metric), details.get("deviation")
        if values and finite(deviation):
            value = next(iter(values.values()))  # of the first repeat, as are the details
            parts = (f", {details[n]} {n}" for n in ("subsets", "splits") if details.get(n))
            own = written(Estimate(value, deviation))
            return f"{row.label} {' ± '.join(filter(None, own))}{''.join(parts)}"
    return None
