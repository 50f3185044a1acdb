"""SNOOPI's PG-SB: SwiftBrush under a guidance scale drawn anew for each sample.

(Nguyen et al. 2024, arXiv:2412.02687, section 4.1.) A constant scale that suits one teacher breaks
another; with

    w ~ U(low, high),  eps = eps_null + w (eps_cond - eps_null)  for teacher and critic alike

the student is matched to the teacher over a whole range of scales. A sample's w is the same in
both scores: with equal networks their difference is 0 whatever w is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..denoisers import Denoises
from ..discriminator import Noisy
from ..errors import UserError
from .base import Batch, MethodCard
from .vsd import VSD, VSDConfig


@dataclass(frozen=True)
class SNOOPIConfig(VSDConfig):
    """The paper's values for Stable Diffusion 1.5 and 2.1."""

    guidance_scale: float = 1.0  # of what students are compared with; guidance_range trains them
    guidance_range: tuple[float, float] = (0.5, 4.0)  # w ~ U of it; PixArt: 0.5, 3
    critic_alpha: float = 128.0  # the critic's update is scaled by critic_alpha / critic_rank

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not 0 <= low < high:
            raise UserError(f"guidance_range={low}, {high}: 0 <= low < high is needed")


class SNOOPI(VSD):
    """:class:`VSD` with a scale for each sample. It needs ``guide``: UserError without one."""

    Config = SNOOPIConfig
    card = MethodCard(
        name="snoopi",
        title="One-step diffusion with proper guidance (SNOOPI)",
        paper="Nguyen et al. 2024, arXiv:2412.02687",
        needs=("critic",),
        guidance="both scores, a random scale a sample",
        teachers=("any denoiser with a null conditioning",),
    )

    def __init__(self, generator: Any, critic: Any, teacher: Denoises, *rest: Any, **options: Any):
        super().__init__(generator, critic, teacher, *rest, **options)
        self.teacher = teacher
        if self.guide is None:
            raise UserError("guidance_range needs a guide, and there is none")
        self.guide(teacher, self.config.guidance_range[1])  # UserError if it cannot be

    def scores(self, noisy: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x0_real, x0_fake) under the same w, (B,)."""
        assert self.guide is not None
        w = batch.draws.uniform(len(noisy.x_t), *self.config.guidance_range)
        real, fake = self.guide(self.teacher, w), self.guide(self.critic.frozen, w)
        return real(*noisy).x0_hat, fake(*noisy).x0_hat
