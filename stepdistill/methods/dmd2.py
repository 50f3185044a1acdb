"""DMD2: distribution matching distillation (Yin et al. 2024b, arXiv:2405.14867).

The generator descends the reverse KL between its noised samples and the teacher's,

    grad KL(q_t || p_t) = E[ w_t (x0_fake - x0_real) dx0/dtheta ]              (DMD, Eq. 3 and 8)

A GAN term on real data, with a head on the critic's features, corrects what the teacher gets wrong
(section 4.3). Several critic updates a generator update replace DMD's regression loss (4.2);
several steps are trained on the student's own trajectory (4.5).

Published DMD2 lets one critic follow the samples of all steps together, so that their mixture is
matched and none of them alone. With ``through_all_steps`` the samples of the last step alone are
matched, and the gradient runs through the whole trajectory as one deep generator's: every step
learns in every update, at the memory of all steps' activations.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..discriminator import CriticTrunk, Discriminator, Noisy, build_head
from ..errors import UserError
from ..losses import pseudo_loss
from ..plans import StepPlan
from ..roles import Role
from ..teachers import Teacher
from ..times import TimeLaw, UniformTimes
from .adversary import Adversary, check_r1
from .base import Batch, Loss, MethodCard
from .matching import Matching, MatchingConfig, Seen, check_at_least_0


@dataclass(frozen=True)
class DMD2Config(MatchingConfig):
    """The paper's ImageNet-64 values, Table 6 there. UserError for those that cannot be meant."""

    gan_weight: float = 3e-3  # of the generator's adversarial term; 0 needs no real data
    gan_critic_weight: float = 1e-2  # of the discriminator's loss beside the denoising loss
    gan_own_noise: bool = True  # draw the GAN's (t, eps) apart from the matching ones
    gan_t_max: float | None = None  # of its own t ~ U(0, gan_t_max]; None: the critic's times
    r1_weight: float = 0.0  # of approximate R1 (APT, Eq. 4), inside the discriminator's loss
    r1_std: float = 0.1  # noise added to real samples there, in units of x0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_0(self, "gan_weight", "gan_critic_weight")
        check_r1(self.r1_weight, self.r1_std)
        t_max, own = self.gan_t_max, self.gan_own_noise
        if t_max is not None and not (own and 0 < t_max <= 1):
            raise UserError(f"gan_t_max={t_max}: it lies in (0, 1] and needs gan_own_noise")


class DMD2(Matching):
    """:class:`Matching` with a GAN.

    gan_weight > 0 needs a ``discriminator``; UserError where it is missing.
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
        config: Any,
        *,
        discriminator: Discriminator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(generator, critic, teacher, plan, config, **options)
        self.adversary: Adversary | None = None
        if config.gan_weight == 0:
            return
        if discriminator is None:
            raise UserError("gan_weight > 0 needs a discriminator: pass one or set gan_weight=0")
        self.adversary = Adversary(
            discriminator,
            self.schedule,
            self.gan_times() if config.gan_own_noise else None,
            config.r1_weight,
            config.r1_std,
        )
        self.roles["head"] = discriminator.head
        self.updates["critic"] = ("critic", "head")
        self.learning_rates["head"] = config.critic_lr
        self.needs_data = True

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """A new head on the critic's features, if there is a GAN."""
        if config.gan_weight == 0:
            return {}
        head = build_head(teacher.denoiser, teacher.smallest_shape, teacher.probe())
        return {"discriminator": CriticTrunk(head)}

    def gan_times(self) -> TimeLaw:
        """Where the GAN draws times of its own."""
        t_max = self.config.gan_t_max
        return self.critic_times if t_max is None else UniformTimes(0.0, t_max)

    def match(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """Distribution matching, plus gan_weight times the adversarial term."""
        if self.adversary is None:
            return super().match(x0, noisy, batch)
        judged = self.adversary.judge(self.critic, noisy, x0, batch)
        with torch.no_grad():
            x0_real = judged.x0_real
            if x0_real is None or self.path is not None:
                x0_real = self.x0_real(noisy, batch)
            seen = Seen(x0, x0_real, judged.x0_fake, noisy, judged.logits)
            gradient = self.gradient(seen, batch)
        matching = pseudo_loss(x0, gradient).mean()
        logs = {"matching": matching.detach(), "gan": judged.loss.detach()}
        return Loss(matching + self.config.gan_weight * judged.loss, logs)

    def denoising_alone(self) -> Matching:
        """Without the discriminator."""
        plain = copy.copy(self)
        plain.adversary = None
        return plain

    def follow(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The critic's error, plus gan_critic_weight times the discriminator's loss."""
        if self.adversary is None:
            return super().follow(x0, noisy, batch)
        x0_hat, loss = self.adversary.learn(self.critic, x0, noisy, batch)
        value, logs = self.denoising(x0_hat, x0, noisy.t)
        logs = {**logs, "discriminator": loss.detach()}
        return Loss(value + self.config.gan_critic_weight * loss, logs)
