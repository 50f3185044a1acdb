"""Where training times come from: laws of t, drawn from a batch's own numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .draws import Draws
from .schedules import Schedule

Span = tuple[float, float]  # the times (low, high]
WHOLE: Span = (0.0, 1.0)


class TimeLaw(Protocol):
    """A distribution over t in (0, 1], on the trained times of a schedule."""

    def draw(self, schedule: Schedule, draws: Draws, n: int, span: Span = WHOLE) -> Tensor:
        """(n,) float64 times given that they lie in ``span``."""


@dataclass(frozen=True)
class UniformTimes:
    """t ~ U(low, high]."""

    low: float = 0.0
    high: float = 1.0

    def draw(self, schedule: Schedule, draws: Draws, n: int, span: Span = WHOLE) -> Tensor:
        """See :class:`TimeLaw`. Raises ValueError for a span apart from (low, high]."""
        low, high = max(span[0], self.low), min(span[1], self.high)
        if low >= high:
            raise ValueError(f"no time of ({self.low}, {self.high}] lies in {span}")
        return schedule.nearest(draws.uniform(n, low, high))


@dataclass(frozen=True)
class LogNormalTimes:
    """ln(sigma_t/alpha_t) ~ N(mean, std^2) (Karras et al. 2022, Table 1), kept in [0, 1]."""

    mean: float
    std: float

    def draw(self, schedule: Schedule, draws: Draws, n: int, span: Span = WHOLE) -> Tensor:
        """See :class:`TimeLaw`. Within a span by the inverse of the normal's distribution F.

        u ~ U(F(low), F(high)], ln(sigma_t/alpha_t) = mean + std F^-1(u).
        """
        if span == WHOLE:
            u = draws.normal(n, dtype=torch.float64)
            return schedule.nearest(self._time(schedule, u).clamp(0, 1))
        u = torch.special.ndtri(draws.uniform(n, *self._distribution(schedule, span)))
        low, high = span
        return schedule.nearest(self._time(schedule, u).clamp(math.nextafter(low, 1.0), high))

    def _time(self, schedule: Schedule, u: Tensor) -> Tensor:
        return schedule.time(-2 * (self.mean + self.std * u))

    def _distribution(self, schedule: Schedule, span: Span) -> Span:
        """F at both ends; what would lie beyond t = 0 or 1 counts to the spans that end there."""
        log_level = -schedule.log_snr(torch.tensor(span, dtype=torch.float64)) / 2
        low, high = torch.special.ndtr((log_level - self.mean) / self.std).tolist()
        return 0.0 if span[0] == 0 else low, 1.0 if span[1] == 1 else high
