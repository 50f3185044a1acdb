"""Where training times come from: distributions over t, drawn from a batch's own numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from .draws import Draws
from .schedules import Schedule


def uniform_times(
    schedule: Schedule, draws: Draws, n: int, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """t ~ U(low, high], on the trained times of the schedule; (n,) float64."""
    return schedule.nearest(draws.uniform(n, low, high))


def log_normal_times(schedule: Schedule, draws: Draws, n: int, mean: float, std: float) -> Tensor:
    """ln(sigma_t/alpha_t) ~ N(mean, std^2) (Karras et al. 2022, Table 1), kept in [0, 1]."""
    log_level = mean + std * draws.normal(n, dtype=torch.float64)
    return schedule.nearest(schedule.time(-2 * log_level).clamp(0, 1))
