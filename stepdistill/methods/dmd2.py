"""DMD2: distribution matching distillation (Yin et al. 2024b, arXiv:2405.14867).

The generator descends the reverse KL between its noised samples and the teacher's,

    grad KL(q_t || p_t) = E[ w_t (x0_fake - x0_real) dx0/dtheta ]              (DMD, Eq. 3 and 8)

where x0_real is the (guided) teacher's prediction and x0_fake that of the critic, a copy of the
teacher that follows the generator's distribution. A GAN term on real data, with a head on the
critic's features, corrects what the teacher gets wrong (section 4.3). Several critic updates a
generator update replace DMD's regression loss (4.2); several steps are trained on the student's own
trajectory (4.5).

Published DMD2 lets one critic follow the samples of all steps together, so that their mixture is
matched and none of them alone. With ``through_all_steps`` the samples of the last step alone are
matched, and the gradient runs through the whole trajectory as one deep generator's: every step
learns in every update, at the memory of all steps' activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoisers import Denoiser, Denoises, GuidedWithin
from ..discriminator import CriticTrunk, Discriminator, Noisy, build_head
from ..errors import UserError
from ..losses import (
    approximate_r1,
    dmd_gradient,
    gan_discriminator,
    gan_generator,
    pseudo_loss,
    squared_error,
)
from ..plans import StepPlan, backward_simulation, generate
from ..roles import FULL, LoRAOptions, Role, trainable_role
from ..teachers import Teacher
from ..times import LogNormalTimes, TimeLaw, UniformTimes
from .base import Batch, Loss, MethodCard


@dataclass(frozen=True)
class DMD2Config:
    """The paper's ImageNet-64 values, Table 6 there. UserError for those that cannot be meant."""

    generator_lr: float = 2e-6  # learning rate, constant
    critic_lr: float = 2e-6  # learning rate of the critic and its head
    critic_steps: int = 5  # iterations a generator update: the critic learns in each (4.2)
    guidance_scale: float = 1.0  # of the real score only; Imagen's form, 1 is off
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guided at low < t <= high alone
    t_min: float = 0.02  # matching times, U(t_min, t_max]: steps 20 to 980 of 1000, inclusive
    t_max: float = 0.981  # see t_min
    matching_log_normal: tuple[float, float] | None = None  # instead: mean, std of ln sigma/alpha
    critic_log_normal: tuple[float, float] | None = None  # the critic's times; None: U(0, 1]
    through_all_steps: bool = False  # match the last step's samples alone, through every step
    gan_weight: float = 3e-3  # of the generator's adversarial term; 0 needs no real data
    gan_critic_weight: float = 1e-2  # of the discriminator's loss beside the denoising loss
    gan_own_noise: bool = True  # draw the GAN's (t, eps) apart from the matching ones
    gan_t_max: float | None = None  # of its own t ~ U(0, gan_t_max]; None: the critic's times
    r1_weight: float = 0.0  # of approximate R1 (APT, Eq. 4), inside the discriminator's loss
    r1_std: float = 0.1  # noise added to real samples there, in units of x0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "gan_weight", "gan_critic_weight", "r1_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.r1_std < math.inf:
            raise UserError(f"r1_std must be above 0, got {self.r1_std}")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise UserError(
                f"t_min={self.t_min}, t_max={self.t_max}: 0 <= t_min < t_max <= 1 is needed"
            )
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"guidance_interval={low}, {high}: 0 <= low < high <= 1 is needed")
        t_max, own = self.gan_t_max, self.gan_own_noise
        if t_max is not None and not (own and 0 < t_max <= 1):
            raise UserError(f"gan_t_max={t_max}: it lies in (0, 1] and needs gan_own_noise")
        for name in ("matching_log_normal", "critic_log_normal"):
            mean, std = getattr(self, name) or (0.0, 1.0)
            if not (math.isfinite(mean) and 0 < std < math.inf):
                raise UserError(f"{name}={mean}, {std}: a mean, and a std above 0, are needed")


class DMD2:
    """Two losses over generator, critic and (with a GAN) head.

    ``teacher`` is the frozen Denoiser of samples of ``sample_shape``. Guidance other than 1 needs
    ``guided``, the teacher under it, and gan_weight > 0 a ``discriminator``; UserError where one is
    missing.
    """

    Config = DMD2Config
    card = MethodCard(
        name="dmd2",
        title="Improved distribution matching distillation",
        paper="Yin et al. 2024, arXiv:2405.14867",
        needs=("critic", "data unless gan_weight is 0"),
        guidance="real score",
        teachers=("any denoiser",),
    )

    def __init__(
        self,
        generator: Role,
        critic: Role,
        teacher: Denoiser,
        plan: StepPlan,
        config: DMD2Config,
        *,
        sample_shape: tuple[int, ...],
        guided: Denoises | None = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        if config.gan_weight > 0 and discriminator is None:
            raise UserError("gan_weight > 0 needs a discriminator: pass one or set gan_weight=0")
        self.generator, self.critic, self.config = generator, critic, config
        self.plan = replace(plan, whole=config.through_all_steps)
        self.schedule, self.sample_shape = teacher.schedule, sample_shape
        if config.guidance_scale != 1 and guided is None:
            raise UserError(f"guidance_scale={config.guidance_scale} needs a guided teacher")
        self.real: Denoises = guided or teacher
        low, high = config.guidance_interval
        if (low, high) != (0, 1):
            self.real = GuidedWithin(self.real, teacher, (low, high))
        self.matching_times: TimeLaw = UniformTimes(config.t_min, config.t_max)
        if config.matching_log_normal is not None:
            self.matching_times = LogNormalTimes(*config.matching_log_normal)
        self.critic_times: TimeLaw = UniformTimes()
        if config.critic_log_normal is not None:
            self.critic_times = LogNormalTimes(*config.critic_log_normal)
        self.gan_times = self.critic_times  # where the GAN draws its own
        if config.gan_t_max is not None:
            self.gan_times = UniformTimes(0.0, config.gan_t_max)
        self.gan = discriminator if config.gan_weight > 0 else None
        self.roles = {"critic": critic, "generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {
            "critic": ("critic",),
            "generator": ("generator",),
        }
        self.learning_rates = {"critic": config.critic_lr, "generator": config.generator_lr}
        self.critic_steps = config.critic_steps
        self.needs_data = self.gan is not None
        if self.gan is not None:
            self.roles["head"] = self.gan.head
            self.updates["critic"] = ("critic", "head")
            self.learning_rates["head"] = config.critic_lr

    @classmethod
    def from_teacher(
        cls,
        teacher: Teacher,
        plan: StepPlan,
        config: DMD2Config,
        lora: LoRAOptions = FULL,
    ) -> DMD2:
        """Generator and critic start from the teacher's weights; the head is new.

        With ``lora.rank`` > 0 both are adapters over the teacher's one network.
        """
        targets = teacher.lora_targets
        generator = trainable_role("generator", teacher.student(), lora, targets)
        critic = trainable_role("critic", teacher.denoiser, lora, targets)
        gan = None
        if config.gan_weight > 0:
            gan = CriticTrunk(build_head(teacher.denoiser, teacher.smallest_shape, teacher.probe()))
        return cls(
            generator,
            critic,
            teacher.denoiser,
            plan,
            config,
            sample_shape=teacher.sample_shape,
            guided=teacher.guided(config.guidance_scale),
            discriminator=gan,
        )

    def generator_loss(self, batch: Batch) -> Loss:
        """Distribution matching, plus gan_weight times the adversarial term."""
        x0 = self._student(self.generator, batch)
        fake = self._noised(x0, batch, self.matching_times)
        x0_fake, adversarial = self._judge(x0, fake, batch)
        with torch.no_grad():
            x0_real = self.real(*fake).x0_hat
            gradient = dmd_gradient(x0, x0_real, x0_fake)
        matching = pseudo_loss(x0, gradient).mean()
        logs = {
            "matching": matching.detach(),
            "gan": adversarial.detach(),
            "x0_mean": x0.detach().mean(),
            "x0_std": x0.detach().std(),
        }
        return Loss(matching + self.config.gan_weight * adversarial, logs)

    def critic_loss(self, batch: Batch) -> Loss:
        """Denoising of the generator's samples over all times, plus the discriminator's loss."""
        with torch.no_grad():
            x0 = self._student(self.generator.frozen, batch)
        noisy = self._noised(x0, batch, self.critic_times)
        if self.gan is None:
            x0_hat = self.critic(*noisy).x0_hat
            discrimination = x0.new_zeros(())
        else:
            x0_hat, discrimination = self._discriminate(x0, noisy, batch)
        weight = self.critic.module.loss_weight(noisy.t).to(x0)
        denoising = (weight * squared_error(x0_hat, x0)).mean()
        logs = {"denoising": denoising.detach(), "discriminator": discrimination.detach()}
        return Loss(denoising + self.config.gan_critic_weight * discrimination, logs)

    def _judge(self, x0: Tensor, fake: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the critic's x0_hat of ``fake``, the generator's adversarial loss)."""
        if self.gan is not None and not self.config.gan_own_noise:
            x0_fake, logits = self.gan.judge(self.critic, fake)
            return x0_fake, gan_generator(logits).mean()
        with torch.no_grad():
            x0_fake = self.critic.frozen(*fake).x0_hat
        if self.gan is None:
            return x0_fake, x0.new_zeros(())
        apart = self._noised(x0, batch, self.gan_times)
        _, logits = self.gan.judge(self.critic, apart)
        return x0_fake, gan_generator(logits).mean()

    def _discriminate(self, x0: Tensor, noisy: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x0_hat of ``noisy``, the discriminator's loss), in one pass of the critic."""
        assert self.gan is not None
        if batch.x0 is None:
            raise UserError("gan_weight > 0 needs real samples, and the data has none")
        own = self.config.gan_own_noise
        fake = self._noised(x0, batch, self.gan_times) if own else noisy
        eps = batch.draws.normal_like(x0)
        real = Noisy(self.schedule.add_noise(batch.x0, fake.t, eps), fake.t, batch.cond)
        judged = [fake, real]
        if self.config.r1_weight > 0:
            nudged = batch.x0 + self.config.r1_std * batch.draws.normal_like(x0)
            judged.append(Noisy(self.schedule.add_noise(nudged, fake.t, eps), fake.t, batch.cond))
        x0_hat, logits = self.gan.learn(self.critic, noisy, tuple(judged))
        loss = gan_discriminator(logits[0], logits[1]).mean()
        if self.config.r1_weight > 0:
            loss = loss + self.config.r1_weight * approximate_r1(logits[1], logits[2]).mean()
        return x0_hat, loss

    def _student(self, generator: Denoises, batch: Batch) -> Tensor:
        """The student's x0 at the last step of its plan or, as published, at a random one.

        The random step is the same on all ranks.
        """
        shape = (batch.cond.batch_size, *self.sample_shape)
        if batch.x0 is not None:  # real samples may come in several sizes
            shape = tuple(batch.x0.shape)
        z = batch.draws.normal(*shape)

        def fresh_eps() -> Tensor:
            return batch.draws.normal(*shape)

        if self.config.through_all_steps:
            return generate(generator, self.schedule, self.plan, z, batch.cond, fresh_eps)
        return backward_simulation(
            generator,
            self.generator.frozen,
            self.schedule,
            self.plan,
            batch.draws.shared_index(self.plan.steps),
            z,
            batch.cond,
            fresh_eps,
        )

    def _noised(self, x0: Tensor, batch: Batch, times: TimeLaw) -> Noisy:
        """x_t with t of ``times``, and fresh noise."""
        t = times.draw(self.schedule, batch.draws, len(x0))
        x_t = self.schedule.add_noise(x0, t, batch.draws.normal_like(x0))
        return Noisy(x_t, t, batch.cond)
