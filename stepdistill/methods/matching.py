"""What all distribution matching shares: a student, and two who see its samples noised.

With x_t = alpha_t x0 + sigma_t eps and x0 = G(z, c), the reverse KL between the generator's noised
samples and the teacher's has the gradient

    grad KL(q_t || p_t) = E[ w (x0_fake - x0_real) dx0/dtheta ]     (DMD, arXiv:2311.18828, Eq. 3)

where x0_real is the (guided) teacher's prediction at x_t, and x0_fake that of the critic, a copy of
the teacher that learns to denoise the generator's samples. A method says what w is (``gradient``),
and what it adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..denoisers import Denoiser, Denoises, GuidedWithin
from ..discriminator import Noisy
from ..errors import UserError
from ..losses import dmd_gradient, pseudo_loss, squared_error
from ..plans import StepPlan
from ..roles import FULL, LoRAOptions, Role, trainable_role
from ..teachers import Teacher
from ..times import LogNormalTimes, TimeLaw, UniformTimes, check_log_normal
from .base import Batch, Loss, MethodCard
from .rollout import RollsOut, statistics

M = TypeVar("M", bound="Matching")
# (a denoiser of the teacher's family, guidance_scale) -> it under guidance; (B,) one for each
Guide = Callable[[Denoises, float | Tensor], Denoises]


@dataclass(frozen=True)
class MatchingConfig:
    """DMD2's values on ImageNet-64 (Table 6 there). UserError for those that cannot be meant."""

    generator_lr: float = 2e-6  # learning rate, constant
    critic_lr: float = 2e-6  # learning rate of the critic, and of a discriminator's head
    critic_steps: int = 5  # iterations a generator update: the critic learns in each
    guidance_scale: float = 1.0  # Imagen's form, 1 is off; of the real score
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guided at low < t <= high alone
    t_min: float = 0.02  # matching times, U(t_min, t_max]: steps 20 to 980 of 1000, inclusive
    t_max: float = 0.981  # see t_min
    matching_log_normal: tuple[float, float] | None = None  # instead: mean, std of ln sigma/alpha
    critic_log_normal: tuple[float, float] | None = None  # the critic's times; None: U(0, 1]
    through_all_steps: bool = False  # match the last step's samples alone, through every step

    def __post_init__(self) -> None:
        check_at_least_0(self, "guidance_scale")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise UserError(
                f"t_min={self.t_min}, t_max={self.t_max}: 0 <= t_min < t_max <= 1 is needed"
            )
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"guidance_interval={low}, {high}: 0 <= low < high <= 1 is needed")
        for name in ("matching_log_normal", "critic_log_normal"):
            check_log_normal(name, getattr(self, name))


def check_at_least_0(config: Any, *names: str) -> None:
    """UserError for a field that is negative or not finite."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"{name} must be at least 0, got {getattr(config, name)}")


class TeacherPath(Protocol):
    """A teacher for each iteration (from 1), in place of one for all: see ``disback.py``."""

    def at(self, iteration: int) -> Denoises:
        """A denoiser of the teacher's family; the same for the same iteration."""
        ...

    def copied(self) -> list[Tensor]:
        """Those of the roles' weights that it holds once more, at most."""
        ...


class Seen(NamedTuple):
    """What teacher and critic make of the same noisy samples ``noisy`` of x0.

    ``logits`` (B,) are a discriminator's there, if one judges them.
    """

    x0: Tensor
    x0_real: Tensor
    x0_fake: Tensor
    noisy: Noisy
    logits: Tensor | None = None


class Matching(RollsOut):
    """Two losses over generator and critic.

    ``teacher`` is the frozen Denoiser of samples of ``sample_shape``. Guidance other than 1 needs
    ``guide``: UserError where it is missing. With a ``path`` its denoisers are asked for the real
    score in the teacher's place, under the same guidance.
    """

    path: TeacherPath | None = None
    Config: ClassVar[type[MatchingConfig]] = MatchingConfig
    card: ClassVar[MethodCard]

    def __init__(
        self,
        generator: Role,
        critic: Role,
        teacher: Denoiser,
        plan: StepPlan,
        config: Any,
        *,
        sample_shape: tuple[int, ...],
        guide: Guide | None = None,
    ) -> None:
        super().__init__(generator, teacher.schedule, plan, sample_shape, config.through_all_steps)
        self.critic, self.config, self.guide = critic, config, guide
        self.teacher, self.real = teacher, self.guided(teacher)
        self.matching_times: TimeLaw = UniformTimes(config.t_min, config.t_max)
        if config.matching_log_normal is not None:
            self.matching_times = LogNormalTimes(*config.matching_log_normal)
        self.critic_times: TimeLaw = UniformTimes()
        if config.critic_log_normal is not None:
            self.critic_times = LogNormalTimes(*config.critic_log_normal)
        self.roles = {"critic": critic, "generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {
            "critic": ("critic",),
            "generator": ("generator",),
        }
        self.learning_rates = {"critic": config.critic_lr, "generator": config.generator_lr}
        self.critic_steps: int = config.critic_steps
        self.needs_data = False

    @classmethod
    def from_teacher(
        cls: type[M], teacher: Teacher, plan: StepPlan, config: Any, lora: LoRAOptions = FULL
    ) -> M:
        """Generator and critic start from the teacher's weights.

        With ``lora.rank`` > 0 both are adapters over the teacher's one network.
        """
        targets = teacher.lora_targets
        return cls(
            trainable_role("generator", teacher.student(), lora, targets),
            trainable_role("critic", teacher.denoiser, cls.critic_lora(config, lora), targets),
            teacher.denoiser,
            plan,
            config,
            sample_shape=teacher.sample_shape,
            guide=guide_of(teacher),
            **cls.more(teacher, config),
        )

    @classmethod
    def critic_lora(cls, config: Any, lora: LoRAOptions) -> LoRAOptions:
        """How the critic learns: as the generator does."""
        return lora

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """What a method's constructor takes beside what all of them do."""
        return {}

    def guided(self, denoiser: Denoises) -> Denoises:
        """``denoiser``, of the teacher's family, under guidance as the config has it."""
        scale, interval = self.config.guidance_scale, self.config.guidance_interval
        if scale == 1:
            return denoiser
        if self.guide is None:
            raise UserError(f"guidance_scale={scale} needs a guide, and there is none")
        guided = self.guide(denoiser, scale)
        return guided if interval == (0, 1) else GuidedWithin(guided, denoiser, interval)

    def teacher_at(self, batch: Batch) -> Denoises:
        """Whoever gives the real score in the batch's iteration, without guidance."""
        return self.teacher if self.path is None else self.path.at(batch.draws.iteration)

    def real_at(self, batch: Batch) -> Denoises:
        """The real score of the batch's iteration, under guidance."""
        return self.real if self.path is None else self.guided(self.teacher_at(batch))

    # --- the generator -------------------------------------------------------------------------

    def generator_loss(self, batch: Batch) -> Loss:
        """The method's matching of the student's samples."""
        x0 = self.student(self.generator, batch)
        noisy = self.noised(x0, batch, self.matching_times)
        loss = self.match(x0, noisy, batch)
        return Loss(loss.value, {**loss.logs, **statistics(x0)})

    def match(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """Gradient descent along ``gradient``, from what teacher and critic see."""
        with torch.no_grad():
            seen = Seen(x0, *self.scores(noisy, batch), noisy)
            gradient = self.gradient(seen, batch)
        matching = pseudo_loss(x0, gradient).mean()
        return Loss(matching, {"matching": matching.detach()})

    def scores(self, noisy: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x0_real, x0_fake)."""
        return self.x0_real(noisy, batch), self.x0_fake(noisy)

    def x0_real(self, noisy: Noisy, batch: Batch) -> Tensor:
        """What the teacher makes of noisy samples."""
        return self.real_at(batch)(*noisy).x0_hat

    def x0_fake(self, noisy: Noisy) -> Tensor:
        """What the critic makes of them."""
        x0_hat: Tensor = self.critic.frozen(*noisy).x0_hat
        return x0_hat

    def gradient(self, seen: Seen, batch: Batch) -> Tensor:
        """At x0: DMD's (x0_fake - x0_real) / mean |x0 - x0_real|."""
        return dmd_gradient(seen.x0, seen.x0_real, seen.x0_fake)

    # --- the critic ----------------------------------------------------------------------------

    def denoising_alone(self) -> Matching:
        """The same over the same roles, where the critic learns nothing but to denoise."""
        return self

    def critic_loss(self, batch: Batch) -> Loss:
        """Denoising of the generator's samples over all times."""
        with torch.no_grad():
            x0 = self.student(self.generator.frozen, batch)
        return self.follow(x0, self.noised(x0, batch, self.critic_times), batch)

    def follow(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The critic's error on noisy samples of the generator."""
        return self.denoising(self.critic(*noisy).x0_hat, x0, noisy.t)

    def denoising(self, x0_hat: Tensor, x0: Tensor, t: Tensor) -> Loss:
        """E[ w(t) |x0_hat - x0|^2 ]."""
        denoising = (self.critic_weight(t).to(x0) * squared_error(x0_hat, x0)).mean()
        return Loss(denoising, {"denoising": denoising.detach()})

    def critic_weight(self, t: Tensor) -> Tensor:
        """w(t), (B,): the network's own training error."""
        weight: Tensor = self.critic.module.loss_weight(t)
        return weight


def guide_of(teacher: Teacher) -> Guide:
    """Guidance as the teacher's family has it."""

    def guide(denoiser: Denoises, guidance_scale: float | Tensor) -> Denoises:
        return teacher.guide(denoiser, guidance_scale)

    return guide
