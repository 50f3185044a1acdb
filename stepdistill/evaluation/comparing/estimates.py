"""A value with its 95 % interval, and whether two of them can be told apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ...metrics.intervals import seeds_interval

NORMAL = 1.96  # quantile of the normal distribution at 97.5 %


@dataclass(frozen=True)
class Estimate:
    """``value`` +- ``half`` holds the truth in 95 of 100 cases; None where that is not known.

    ``seeds`` are the evaluations that it is the mean of, ``by`` what the interval comes from.
    """

    value: float
    half: float | None = None
    seeds: int = 1
    by: str | None = None  # "seeds" or "standard error"

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.value + (self.half or 0.0)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean +- t s / sqrt(n): Student's interval of ``values``, n independent repeats.

    s is their standard deviation with n - 1 and t the quantile at 97.5 % with n - 1 degrees of
    freedom: 12.7 at two, 4.30 at three. Equal values tell no interval: that two of 2,000 images
    came out as 98 % each is chance, not certainty.
    """
    count, mean = len(values), statistics.fmean(values)
    spread = statistics.stdev(values) if count > 1 else 0.0
    if spread == 0:
        return Estimate(mean, None, count)
    return Estimate(mean, seeds_interval(values).half, count, "seeds")


def from_error(values: Sequence[float], error: float) -> Estimate:
    """Mean of ``values`` +- 1.96 standard errors of one of them."""
    return Estimate(statistics.fmean(values), NORMAL * error, len(values), "standard error")


def told_apart(a: Estimate, b: Estimate, difference: float | None = None) -> bool | None:
    """Whether the two differ by more than sqrt(half_a^2 + half_b^2), the 95 % interval of a
    difference of two independent values; None where one has no interval.

    ``difference`` is theirs, or that of what is to be compared of them.
    """
    if a.half is None or b.half is None:
        return None
    difference = a.value - b.value if difference is None else difference
    return abs(difference) > math.hypot(a.half, b.half)


def written(estimate: Estimate) -> tuple[str, str]:
    """("8.35", "0.12"): the interval to two digits and the value to as many places.

    Without an interval the value has four digits, and "" stands for the interval.
    """
    if not estimate.half:
        return plain(estimate.value), ""
    places = 1 - math.floor(math.log10(estimate.half))
    if places > 8:
        return f"{estimate.value:.4g}", f"{estimate.half:.2g}"
    rounded = round(estimate.value, places), round(estimate.half, places)
    value, half = (f"{number:,.{max(0, places)}f}" for number in rounded)
    return value, half


def plain(value: float) -> str:
    """Four digits, thousands set apart, no exponent between 1e-4 and 1e7."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"
