"""Quality against cost: the points, and those that no other point beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...metrics.metric_names import Metric
from .estimates import Estimate


@dataclass(frozen=True)
class Point:
    """A row in a plot, ``number`` its place in the table from 1 on."""

    label: str
    number: int
    cost: float
    quality: Estimate
    is_teacher: bool


@dataclass(frozen=True)
class Tradeoff:
    """``metric`` against a cost such as network calls; ``cost`` names it with its unit."""

    metric: Metric
    cost: str
    points: Sequence[Point]

    def front(self) -> list[int]:
        """The points that none dominates, cheapest first.

        One dominates another if it costs no more and is no worse, and differs in one of the two.
        A metric without a known direction has no front.
        """
        if self.metric.goal is None:
            return []
        pairs = [(p.cost, self.metric.shortfall(p.quality.value)) for p in self.points]
        kept = [
            i
            for i, (cost, loss) in enumerate(pairs)
            if not any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in pairs)
        ]
        return sorted(kept, key=lambda i: pairs[i])
