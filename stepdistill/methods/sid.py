"""SiD: score identity distillation (Zhou et al. 2024, arXiv:2404.04057).

The Fisher divergence between teacher and generator, by an identity that needs no samples' score:

    L = E[ w_t (x0_real - x0_fake)^T ((x0_real - x0) - a (x0_real - x0_fake)) ]

with w_t = 1 / mean |x0 - x0_real|, taken as a constant (the released code's). Unlike a matched
gradient it flows through both scores, whose weights do not learn. For the exact critic
E[L / w] = (1 - a) E|x0_real - x0_fake|^2, which is negative for a > 1. Guided (SiD-LSG,
arXiv:2406.01561), the critic learns under the same guidance too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..discriminator import Noisy
from ..errors import UserError
from ..losses import sid_loss
from .base import Batch, Loss, MethodCard
from .matching import Matching, MatchingConfig


@dataclass(frozen=True)
class SiDConfig(MatchingConfig):
    """The published values on CIFAR-10."""

    generator_lr: float = 1e-5  # learning rate, constant
    critic_lr: float = 1e-5  # learning rate of the critic
    critic_steps: int = 1  # iterations a generator update: the critic learns in each
    guidance_scale: float = 1.0  # Imagen's form, 1 is off; of both scores, and of the critic's loss
    t_min: float = 0.0  # matching times, U(t_min, t_max]: the lower part of Karras' noise levels
    t_max: float = 0.8  # see t_min
    critic_log_normal: tuple[float, float] | None = (-1.2, 1.2)  # None: U(0, 1]
    alpha: float = 1.2  # a of the loss: 0 the plain identity, 1.2 the paper's best (1 was close)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha must be a number, got {self.alpha}")


class SiD(Matching):
    """:class:`Matching` by a loss through both scores."""

    Config = SiDConfig
    card = MethodCard(
        name="sid",
        title="Score identity distillation",
        paper="Zhou et al. 2024, arXiv:2404.04057 and arXiv:2406.01561",
        needs=("critic",),
        guidance="both scores and the critic's loss",
        teachers=("any denoiser",),
    )

    def match(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The gradient flows through x0, and through what both scores make of it."""
        value = sid_loss(x0, *self.scores(noisy, batch), self.config.alpha).mean()
        return Loss(value, {"identity": value.detach()})

    def x0_fake(self, noisy: Noisy) -> Tensor:
        """Guided, as the real score is."""
        return self.guided(self.critic.frozen)(*noisy).x0_hat

    def follow(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """The critic's error under guidance."""
        return self.denoising(self.guided(self.critic)(*noisy).x0_hat, x0, noisy.t)
