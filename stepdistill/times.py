"""Where training times come from: laws of t, drawn from a batch's own numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .draws import Draws
from .errors import UserError
from .schedules import Schedule


class TimeLaw(Protocol):
    """A distribution over t in (0, 1], on the trained times of a schedule."""

    def draw(self, schedule: Schedule, draws: Draws, n: int) -> Tensor:
        """(n,) float64 times."""


@dataclass(frozen=True)
class UniformTimes:
    """t ~ U(low, high]."""

    low: float = 0.0
    high: float = 1.0

    def draw(self, schedule: Schedule, draws: Draws, n: int) -> Tensor:
        """See :class:`TimeLaw`."""
        return schedule.nearest(draws.uniform(n, self.low, self.high))


@dataclass(frozen=True)
class LogNormalTimes:
    """ln(sigma_t/alpha_t) ~ N(mean, std^2) (Karras et al. 2022, Table 1), kept in [0, 1]."""

    mean: float
    std: float

    def draw(self, schedule: Schedule, draws: Draws, n: int) -> Tensor:
        """See :class:`TimeLaw`."""
        log_level = self.mean + self.std * draws.normal(n, dtype=torch.float64)
        return schedule.nearest(schedule.time(-2 * log_level).clamp(0, 1))


def check_log_normal(name: str, law: tuple[float, float] | None) -> None:
    """UserError for a mean and a std that no log-normal law has; None is another law."""
    mean, std = law or (0.0, 1.0)
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise UserError(f"{name}={mean}, {std}: a mean, and a std above 0, are needed")
