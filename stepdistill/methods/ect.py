"""ECT: easy consistency tuning (Geng et al. 2024, arXiv:2406.14548).

A network that starts as a diffusion model is tuned until x0_hat is the same along a trajectory:

    L = w(t) || f(x_t, t) - sg f(x_r, r) ||,      x_t = x0 + t eps,  x_r = x0 + r eps      (Eq. 8)

with noise levels r < t. At first r = 0, where the target is x0 itself (diffusion training); the gap
t - r halves stage by stage until the loss is that of a consistency model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import pseudo_huber
from ..plans import StepPlan
from ..roles import FULL, LoRAOptions, Role, trainable_role
from ..schedules import Schedule
from ..teachers import Teacher
from .base import Batch, Loss, MethodCard


@dataclass(frozen=True)
class ECTConfig:
    """The paper's CIFAR-10 values (Table 4 and section 4.1)."""

    lr: float = 1e-4  # the paper uses RAdam, this loop AdamW
    noise_mean: float = -1.1  # ln t ~ N(noise_mean, noise_std^2), t the noise level sigma/alpha
    noise_std: float = 2.0  # see noise_mean
    q: float = 2.0  # the gap t - r shrinks by q each stage
    double_every: int = 10_000  # iterations a stage
    max_stage: int = 8  # the last stage, in which the run stays
    k: float = 8.0  # n(t) = 1 + k sigmoid(-b t): finer pairs at low noise
    b: float = 1.0  # see k
    huber_c: float = 0.0  # 0 is the l2 norm


class ECT:
    """One loss over one role. ``generator`` must be the identity at zero noise (not x0-predicting).

    ``sigma_min`` is the noise level below which the target is x0 itself.
    """

    Config = ECTConfig
    card = MethodCard(
        name="ect",
        title="Easy consistency tuning",
        paper="Geng et al. 2024, arXiv:2406.14548",
        needs=("data",),
        guidance="none",
        teachers=("EDM", "eps", "v", "flow"),
    )

    def __init__(self, generator: Role, plan: StepPlan, config: ECTConfig) -> None:
        self.generator, self.plan, self.config = generator, plan, config
        self.schedule: Schedule = generator.module.schedule
        self.roles = {"generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": config.lr}
        self.critic_steps = 1
        self.needs_data = True

    @classmethod
    def from_teacher(
        cls, teacher: Teacher, plan: StepPlan, config: ECTConfig, lora: LoRAOptions = FULL
    ) -> ECT:
        """The generator starts from the teacher's weights."""
        targets = teacher.lora_targets
        return cls(trainable_role("generator", teacher.student(), lora, targets), plan, config)

    def generator_loss(self, batch: Batch) -> Loss:
        """w(t) d(f(x_t), sg f(x_r)) with w = 1/(t - r) (Eq. 13), the same dropout in both."""
        if batch.x0 is None:
            raise TypeError("ECT learns from real samples")
        x0, eps = batch.x0, batch.draws.normal_like(batch.x0)
        level_t, level_r = self.pair(self._noise_levels(len(x0), batch), batch.draws.iteration)
        t, r = self._time(level_t), self._time(level_r)
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(x0)):
            target = self.generator(self.schedule.add_noise(x0, r, eps), r, batch.cond).x0_hat
        done = (level_r <= self._lowest()).to(x0.device).reshape(-1, *([1] * (x0.ndim - 1)))
        target = torch.where(done, x0, target)
        x0_hat = self.generator(self.schedule.add_noise(x0, t, eps), t, batch.cond).x0_hat
        weight = 1 / (level_t - level_r)
        distance = pseudo_huber(x0_hat, target.detach(), self.config.huber_c)
        value = (weight.to(x0) * distance).mean()
        logs = {
            "consistency": value.detach(),
            "gap": (level_t - level_r).mean(),
            "x0_mean": x0_hat.detach().mean(),
            "x0_std": x0_hat.detach().std(),
        }
        return Loss(value, logs)

    def pair(self, level_t: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """(t, r): r = t max(0, 1 - n(t)/q^(stage + 1)), n(t) = 1 + k sigmoid(-b t) (Eq. 12)."""
        stage = min(iteration // self.config.double_every, self.config.max_stage)
        n = 1 + self.config.k * torch.sigmoid(-self.config.b * level_t)
        return level_t, level_t * (1 - n / self.config.q ** (stage + 1)).clamp(min=0)

    def _noise_levels(self, n: int, batch: Batch) -> Tensor:
        """Log-normal noise levels within the schedule's range."""
        u = batch.draws.normal(n, dtype=torch.float64)
        level = (self.config.noise_mean + self.config.noise_std * u).exp()
        return level.clamp(2 * self._lowest(), self._level(1.0))

    def _time(self, level: Tensor) -> Tensor:
        """Noise level -> time, kept where the network is defined."""
        return self.schedule.time(-2 * level.clamp(min=self._lowest()).log())

    def _lowest(self) -> float:
        return max(self._level(0.0), 1e-4)

    def _level(self, t: float) -> float:
        alpha_t, sigma_t = self.schedule(torch.tensor([t], dtype=torch.float64))
        return (sigma_t / alpha_t).clamp(max=1e4).item()


def _devices(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []
