"""Diffusion training itself, to make a teacher: EDM (Karras et al. 2022, arXiv:2206.00364).

    L = E[ w(sigma) || D(x0 + sigma eps; sigma, c) - x0 ||^2 ],   ln sigma ~ N(P_mean, P_std^2)

with w = 1/c_out^2, so that every noise level starts with a unit loss (Eq. 8, Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..conditioning import ConditionDropout, Conditioning
from ..losses import squared_error
from ..plans import StepPlan
from ..roles import Role
from ..times import LogNormalTimes, TimeLaw, UniformTimes
from .base import Batch, Loss


@dataclass(frozen=True)
class DenoisingConfig:
    """EDM's values, but for the learning rate of the small built-in networks."""

    lr: float = 2e-3  # constant but for warm-up and decay
    noise_mean: float = -1.2  # P_mean
    noise_std: float = 1.2  # P_std
    uniform_times: bool = False  # t ~ U(0, 1] instead, up to pure noise
    condition_dropout: float = 0.1  # how often the null conditioning is shown


class Denoising:
    """One loss over one role. ``null_cond`` replaces the conditioning of dropped samples."""

    def __init__(
        self, generator: Role, config: DenoisingConfig, null_cond: Conditioning | None
    ) -> None:
        self.generator, self.config = generator, config
        self.dropout: ConditionDropout | None = None
        if null_cond is not None and config.condition_dropout > 0:
            self.dropout = ConditionDropout(config.condition_dropout, null_cond)
        self.times: TimeLaw = LogNormalTimes(config.noise_mean, config.noise_std)
        if config.uniform_times:
            self.times = UniformTimes()
        self.plan = StepPlan()
        self.roles = {"generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": config.lr}
        self.critic_steps = 1
        self.needs_data = True

    def generator_loss(self, batch: Batch) -> Loss:
        """Weighted squared error of x0_hat."""
        if batch.x0 is None:
            raise TypeError("diffusion training learns from real samples")
        x0, schedule = batch.x0, self.generator.module.schedule
        t = self.times.draw(schedule, batch.draws, len(x0))
        x_t = schedule.add_noise(x0, t, batch.draws.normal_like(x0))
        cond = batch.cond if self.dropout is None else self.dropout(batch.cond, batch.draws)
        x0_hat = self.generator(x_t, t, cond).x0_hat
        weight = self.generator.module.loss_weight(t).to(x0)
        value = (weight * squared_error(x0_hat, x0)).mean()
        return Loss(value, {"denoising": value.detach()})
