"""LADD: latent adversarial diffusion distillation (Sauer et al. 2024, arXiv:2403.12015).

Adversarial terms alone: the frozen teacher's features of noised samples, after each of its blocks,
and heads on them that learn to tell fake from real,

    L_D = E[ softplus(D(fake_t)) + softplus(-D(real_t)) ],   L_G = E[ softplus(-D(fake_t)) ]

There is no critic and no score: the least memory of this family. Noise levels of the judged samples
are log-normal, the paper's logit-normal times on a flow schedule: more noise weighs shape over
texture. Real samples are data, or a teacher's own (``precompute --pairs``), as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser, Denoises
from ..discriminator import AllBlocks, Noisy, TeacherTrunk, build_head
from ..losses import gan_generator
from ..plans import StepPlan
from ..roles import FULL, LoRAOptions, Role, trainable_role
from ..teachers import Teacher
from ..times import LogNormalTimes, TimeLaw, UniformTimes, check_log_normal
from .adversary import check_r1, discriminator_loss, judged_samples
from .base import Batch, Loss, MethodCard
from .rollout import RollsOut, statistics


@dataclass(frozen=True)
class LADDConfig:
    """The paper's times; rates and the number of updates as in FastGen's form of it."""

    generator_lr: float = 2e-6  # learning rate, constant
    head_lr: float = 2e-6  # learning rate of the heads
    critic_steps: int = 5  # iterations a generator update: the heads learn in each
    log_normal: tuple[float, float] | None = (1.0, 1.0)  # of ln sigma/alpha; None: U(0, 1]
    r1_weight: float = 0.0  # of approximate R1 (APT, Eq. 4), inside the discriminator's loss
    r1_std: float = 0.1  # noise added to real samples there, in units of x0
    through_all_steps: bool = False  # judge the last step's samples alone, through every step

    def __post_init__(self) -> None:
        check_r1(self.r1_weight, self.r1_std)
        check_log_normal("log_normal", self.log_normal)


class LADD(RollsOut):
    """Two losses over generator and heads on ``trunk``, by default the teacher's tapped block."""

    Config = LADDConfig
    card = MethodCard(
        name="ladd",
        title="Latent adversarial diffusion distillation",
        paper="Sauer et al. 2024, arXiv:2403.12015",
        needs=("data",),
        guidance="in the samples, where they are a teacher's",
        teachers=("any denoiser",),
    )

    def __init__(
        self,
        generator: Role,
        head: Role,
        teacher: Denoiser,
        plan: StepPlan,
        config: LADDConfig,
        *,
        sample_shape: tuple[int, ...],
        trunk: Denoises | None = None,
    ) -> None:
        super().__init__(generator, teacher.schedule, plan, sample_shape, config.through_all_steps)
        self.config, self.trunk = config, trunk or teacher
        self.discriminator = TeacherTrunk(head, self.trunk)
        self.times: TimeLaw = UniformTimes()
        if config.log_normal is not None:
            self.times = LogNormalTimes(*config.log_normal)
        self.roles = {"head": head, "generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {
            "critic": ("head",),
            "generator": ("generator",),
        }
        self.learning_rates = {"head": config.head_lr, "generator": config.generator_lr}
        self.critic_steps, self.needs_data = config.critic_steps, True

    @classmethod
    def from_teacher(
        cls, teacher: Teacher, plan: StepPlan, config: LADDConfig, lora: LoRAOptions = FULL
    ) -> LADD:
        """The generator starts from the teacher's weights; the heads are new, one a block of it."""
        generator = trainable_role("generator", teacher.student(), lora, teacher.lora_targets)
        trunk = AllBlocks(teacher.denoiser)
        head = build_head(trunk, teacher.smallest_shape, teacher.probe())
        own: dict[str, Any] = {"sample_shape": teacher.sample_shape, "trunk": trunk}
        return cls(generator, head, teacher.denoiser, plan, config, **own)

    def generator_loss(self, batch: Batch) -> Loss:
        """L_G."""
        x0 = self.student(self.generator, batch)
        logits = self.discriminator.logits(None, self.noised(x0, batch, self.times))
        value = gan_generator(logits).mean()
        return Loss(value, {"gan": value.detach(), **statistics(x0)})

    def critic_loss(self, batch: Batch) -> Loss:
        """L_D."""
        with torch.no_grad():
            x0 = self.student(self.generator.frozen, batch)
        fake = self.noised(x0, batch, self.times)
        value = self._discrimination(fake, batch)
        return Loss(value, {"discriminator": value.detach()})

    def _discrimination(self, fake: Noisy, batch: Batch) -> Tensor:
        config = self.config
        judged = judged_samples(self.schedule, fake, batch, config.r1_weight, config.r1_std)
        return discriminator_loss(self.discriminator.discriminate(judged), config.r1_weight)
