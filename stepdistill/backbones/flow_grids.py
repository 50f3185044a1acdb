"""The scheduler whose default call walks a StepPlan on a flow schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ..plans import StepPlan, ode_move
from ..schedules import FlowSchedule
from ..shipped import FLOW_SCHEDULER, shipped_class

GRID_TOLERANCE = 1e-6  # of noise levels in [0, 1], which schedulers keep in float32


def flow_match(schedule: FlowSchedule, plan: StepPlan, gives_sigmas: bool) -> Any:
    """The scheduler whose default grid is sigma at the plan's times: our own where diffusers' one
    cannot be bent to it.

    Pipelines that pass sigmas 1, 1 - 1/n, ..., 1/n need the shift alone. The others take an even
    grid down to 1/1000, which one shift and one terminal value together bend to the plan's.
    """
    wanted = schedule(torch.tensor(plan.times, dtype=torch.float64))[1].numpy()
    shift, terminal = schedule.shift, None
    if gives_sigmas:
        even = 1 - np.arange(plan.steps) / plan.steps
        found = _shifted(even, shift)
    else:
        if plan.steps > 1:
            terminal = float(wanted[-1])
            shift = _shift_of(wanted, terminal)
        found = _default_grid(plan.steps, shift, terminal)
    if np.abs(found - wanted).max() > GRID_TOLERANCE:
        return shipped_class(*FLOW_SCHEDULER)(
            noise_levels=wanted.tolist(),
            num_train_timesteps=schedule.num_train_timesteps,
            stochastic_sampling=plan.move is not ode_move,
            whole=plan.whole,
            shift=schedule.shift,
        )
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        shift=shift,
        shift_terminal=terminal,
        stochastic_sampling=plan.move is not ode_move and plan.steps > 1,
    )


def _shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _default_grid(steps: int, shift: float, terminal: float | None) -> np.ndarray:
    """FlowMatchEulerDiscreteScheduler.set_timesteps(steps): it shifts its shifted end once more."""
    last = _shifted(np.array(1e-3), shift)
    grid = _shifted(np.linspace(1, last, steps), shift)
    return grid if terminal is None else 1 - (1 - grid) * (1 - terminal) / (1 - grid[-1])


def _shift_of(wanted: np.ndarray, terminal: float) -> float:
    """The shift whose grid agrees with ``wanted`` at its second level, which rises with it."""
    low, high = 1e-2, 1e2
    for _ in range(200 if len(wanted) > 2 else 0):
        middle = math.sqrt(low * high)
        rises = _default_grid(len(wanted), middle, terminal)[1] < wanted[1]
        low, high = (middle, high) if rises else (low, middle)
    return math.sqrt(low * high) if len(wanted) > 2 else 1.0
