"""Variational score distillation into a one-step generator: SwiftBrush.

(Nguyen and Tran 2024, arXiv:2312.05239; Wang et al. 2023, ProlificDreamer, arXiv:2305.16213.)
Image-free: no real samples, no pairs. The gradient is

    grad = E[ w_t (eps_real - eps_fake) dx0/dtheta ],   w_t = sigma_t^2
         = E[ alpha_t sigma_t (x0_fake - x0_real) dx0/dtheta ]

with both scores under guidance. The critic is a LoRA over the frozen teacher's own weights, and
learns the null conditioning too, so that it can be guided. On a schedule that does not preserve
variance, alpha_t and sigma_t are those of x_t / sqrt(alpha_t^2 + sigma_t^2): the same samples.
SwiftBrush v2 (Dao et al. 2024, arXiv:2408.14176) adds the loss of ``alignment.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning import ConditionDropout, Conditioning
from ..discriminator import Noisy
from ..errors import UserError
from ..losses import vsd_gradient
from ..roles import LoRAOptions
from ..schedules import Schedule
from ..teachers import Teacher
from .alignment import Alignment, AlignmentOptions
from .base import Batch, Loss, MethodCard
from .matching import Matching, MatchingConfig, Seen


@dataclass(frozen=True)
class VSDConfig(AlignmentOptions, MatchingConfig):
    """SwiftBrush's values for Stable Diffusion 2.1, as in its code."""

    generator_lr: float = 1e-6  # learning rate, constant
    critic_lr: float = 1e-3  # learning rate of the critic's adapters
    critic_steps: int = 1  # iterations a generator update: the critic learns in each
    guidance_scale: float = 4.5  # Imagen's form, 1 is off; of both scores
    critic_rank: int = 64  # of the critic's LoRA over the teacher's weights; 0: all weights
    critic_alpha: float = 108.0  # the critic's update is scaled by critic_alpha / critic_rank
    critic_dropout: float = 0.1  # how often the critic is shown the null conditioning

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_alignment()
        LoRAOptions(self.critic_rank, self.critic_alpha)
        if not 0 <= self.critic_dropout <= 1:
            raise UserError(f"critic_dropout must lie in [0, 1], got {self.critic_dropout}")


class VSD(Matching):
    """:class:`Matching` under another weight, with both scores guided; and an ``alignment``, if one
    is given.

    critic_dropout > 0 needs ``null_cond``, of one sample; UserError where it is missing.
    """

    Config = VSDConfig
    card = MethodCard(
        name="vsd",
        title="Variational score distillation (SwiftBrush)",
        paper="Nguyen and Tran 2024, arXiv:2312.05239",
        needs=("critic",),
        guidance="both scores",
        teachers=("any denoiser",),
    )

    def __init__(
        self,
        *roles: Any,
        null_cond: Conditioning | None = None,
        alignment: Alignment | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*roles, **options)
        self.alignment, self.needs_texts = alignment, alignment is not None
        self.dropout: ConditionDropout | None = None
        if self.config.critic_dropout > 0:
            if null_cond is None:
                raise UserError(
                    f"critic_dropout={self.config.critic_dropout} needs a teacher with a null "
                    "conditioning: set method.critic_dropout=0 and method.guidance_scale=1"
                )
            self.dropout = ConditionDropout(self.config.critic_dropout, null_cond)

    @classmethod
    def critic_lora(cls, config: Any, lora: LoRAOptions) -> LoRAOptions:
        """Adapters over the teacher's weights, whatever the generator is."""
        return replace(lora, rank=config.critic_rank, alpha=config.critic_alpha)

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """The null conditioning, and the alignment."""
        return {"null_cond": teacher.null_cond, "alignment": config.alignment(teacher)}

    def match(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The matching, with the alignment beside it."""
        loss = super().match(x0, noisy, batch)
        return loss if self.alignment is None else self.alignment.beside(loss, x0, batch)

    def x0_fake(self, noisy: Noisy) -> Tensor:
        """Guided, as the real score is."""
        return self.guided(self.critic.frozen)(*noisy).x0_hat

    def gradient(self, seen: Seen, batch: Batch) -> Tensor:
        """At x0: sigma_t^2 (eps_real - eps_fake)."""
        alpha_t, sigma_t = variance_preserving(self.schedule, seen.noisy.t)
        return vsd_gradient(seen.x0_real, seen.x0_fake, alpha_t, sigma_t)

    def follow(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The critic's error, some of its samples untold."""
        if self.dropout is not None:
            noisy = noisy._replace(cond=self.dropout(noisy.cond, batch.draws))
        return super().follow(x0, noisy, batch)

    def critic_weight(self, t: Tensor) -> Tensor:
        """alpha_t^2 times the network's own: for eps, mean (alpha_t eps_hat - alpha_t eps)^2."""
        alpha_t, _ = variance_preserving(self.schedule, t)
        return super().critic_weight(t) * alpha_t**2


def variance_preserving(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) of x_t scaled so that alpha_t^2 + sigma_t^2 = 1, (B,)."""
    alpha_t, sigma_t = schedule(t)
    length = torch.hypot(alpha_t, sigma_t)
    return alpha_t / length, sigma_t / length
