"""StepPlan: the times of a few-step student, the only source of them anywhere.

The same object drives the training roll-out, sampling, evaluation and the exported scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .conditioning import Conditioning
from .denoisers import Denoises
from .errors import UserError
from .schedules import EDMSchedule, Schedule
from .solvers import ddim

# (schedule, x_t, x0_hat, t, s, fresh eps) -> x_s
Move = Callable[[Schedule, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def renoise_move(
    schedule: Schedule, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, eps: Tensor
) -> Tensor:
    """Take x0_hat as a sample at time 0 and noise it to s: the kernel q(x_s | x_0).

    Consistency models' Algorithm 1 (on EDM the variance is sigma_s^2 - sigma_min^2), and DMD2's
    multi-step sampling (section 4.5), where sigma_0 = 0.
    """
    return schedule.renoise(x0_hat, torch.zeros_like(s), s, eps)


def ode_move(
    schedule: Schedule, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, eps: Tensor
) -> Tensor:
    """A deterministic DDIM step from x_t to x_s; ``eps`` is not used."""
    return ddim(schedule, x_t, x0_hat, t, s)


MOVES: dict[str, Move] = {"renoise": renoise_move, "ode": ode_move}


@dataclass(frozen=True)
class StepPlan:
    """The decreasing times (1 = pure noise) at which the student is called, and how it moves on.

    ``whole`` marks a student of which only the last x0 was trained to be a sample: no part of its
    steps can be used alone. Raises UserError for times that do not fall, or leave (0, 1].
    """

    times: tuple[float, ...] = (1.0,)
    move: Move = renoise_move
    whole: bool = False

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise(self.times))
        if not self.times or not falling or self.times[0] > 1 or self.times[-1] <= 0:
            raise UserError(f"step times must fall from at most 1 and stay above 0: {self.times}")

    @classmethod
    def uniform(cls, steps: int, move: Move = renoise_move) -> StepPlan:
        """t = 1, 1 - 1/n, ..., 1/n: evenly spaced, first pure noise."""
        if steps < 1:
            raise UserError(f"a plan needs at least 1 step, got {steps}")
        return cls(tuple(1 - j / steps for j in range(steps)), move)

    @classmethod
    def karras(
        cls, steps: int, schedule: EDMSchedule, rho: float, sigma_max: float | None = None
    ) -> StepPlan:
        """Noise levels evenly spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5), as times.

        From ``sigma_max``, by default the schedule's: a student may start from pure noise of less
        (DMD2 starts SDXL's one step at t = 399). A small ``rho`` leaves more noise at the last
        step: with 4 steps from 80, 0.17 for rho 7 and 0.67 for rho 4.
        """
        even = torch.tensor(cls.uniform(steps).times, dtype=torch.float64)
        largest = schedule.sigma_max if sigma_max is None else sigma_max
        sigma = EDMSchedule(schedule.sigma_min, largest, rho)(even)[1]
        times = schedule.time_of_timestep(sigma).tolist()
        return cls((1.0 if sigma_max is None else times[0], *times[1:]))

    @property
    def steps(self) -> int:
        """Network calls a sample."""
        return len(self.times)

    def time(self, index: int, like: Tensor) -> Tensor:
        """The ``index``-th time for each sample of ``like``: (B,) float64."""
        return torch.full((len(like),), self.times[index], dtype=torch.float64, device=like.device)

    def counts(self) -> list[int]:
        """The numbers of steps a sample may be made with: those with an evenly spaced part."""
        if self.whole:
            return [self.steps]
        return [n for n in range(1, self.steps + 1) if self.steps % n == 0]

    def subset(self, steps: int) -> StepPlan:
        """The evenly spaced part of this plan with ``steps`` calls; UserError if it has none."""
        if steps not in self.counts():
            raise UserError(
                f"this student has {self.steps} trained steps: use one of {self.counts()}"
            )
        return replace(self, times=self.times[:: self.steps // steps])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        names = {move: name for name, move in MOVES.items()}
        return {"times": list(self.times), "move": names[self.move], "whole": self.whole}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> StepPlan:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(record["times"]), MOVES[record["move"]], record.get("whole", False))


def start(plan: StepPlan, schedule: Schedule, z: Tensor) -> Tensor:
    """Unit noise z -> the student's first input at the plan's first time."""
    return z * schedule.prior_std(plan.time(0, z)[:1]).to(z).item()


def generate(
    generator: Denoises,
    schedule: Schedule,
    plan: StepPlan,
    z: Tensor,
    cond: Conditioning,
    fresh_eps: Callable[[], Tensor],
) -> Tensor:
    """x0 after all steps of the plan. ``fresh_eps`` draws noise like z, once a move.

    In training the gradient flows through all of them.
    """
    x_t, last = start(plan, schedule, z), plan.steps - 1
    for j in range(last):
        t, s = plan.time(j, z), plan.time(j + 1, z)
        x_t = plan.move(schedule, x_t, generator(x_t, t, cond).x0_hat, t, s, fresh_eps())
    return generator(x_t, plan.time(last, z), cond).x0_hat


def backward_simulation(
    generator: Denoises,
    frozen_generator: Denoises,
    schedule: Schedule,
    plan: StepPlan,
    exit_step: int,
    z: Tensor,
    cond: Conditioning,
    fresh_eps: Callable[[], Tensor],
) -> Tensor:
    """The student's x0 at step ``exit_step`` of its own trajectory (DMD2, section 4.5).

    The steps before run without gradient through ``frozen_generator``; gradient flows through the
    last call alone. ``exit_step`` = 0 starts from exactly pure noise.
    """
    x_t = start(plan, schedule, z)
    with torch.no_grad():
        for j in range(exit_step):
            t, s = plan.time(j, z), plan.time(j + 1, z)
            x0_hat = frozen_generator(x_t, t, cond).x0_hat
            x_t = plan.move(schedule, x_t, x0_hat, t, s, fresh_eps())
    return generator(x_t, plan.time(exit_step, z), cond).x0_hat


def teacher_times(steps: int) -> Sequence[float]:
    """The n times of EDM's sampler: t = 1 ... 0 evenly, sigma_max to sigma_min (Eq. 5)."""
    return [1 - j / (steps - 1) for j in range(steps)] if steps > 1 else [1.0]
