"""SNOOPI: SwiftBrush under random guidance, and negative prompts in the student's attention.

(Nguyen et al. 2024, arXiv:2412.02687.) A constant guidance scale that suits one teacher breaks
another. PG-SB draws one for each sample, the same in both scores,

    w ~ U(low, high),  eps = eps_null + w (eps_cond - eps_null)  for teacher and critic alike

so that the student is matched over a whole range; with equal networks the difference of the scores
is 0 whatever w is. NASA-T trains with a negative prompt: it takes the null conditioning's place in
the teacher's guidance, and in the student a times what its tokens attend to is taken away, with a
~ U(0, 1) for each sample. The critic is not told of it, which the authors found to be worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Denoises
from ..discriminator import Noisy
from ..errors import UserError
from ..negative_attention import steer, with_negative
from ..roles import Role
from ..teachers import Teacher
from .base import Batch, MethodCard
from .matching import Guide, guide_of
from .vsd import VSD, VSDConfig


@dataclass(frozen=True)
class SNOOPIConfig(VSDConfig):
    """The paper's values for Stable Diffusion 1.5 and 2.1."""

    guidance_scale: float = 1.0  # of the teacher in grids and measurements alone
    guidance_range: tuple[float, float] = (0.5, 4.0)  # w ~ U of it; PixArt: 0.5, 3
    critic_alpha: float = 128.0  # the critic's update is scaled by critic_alpha / critic_rank
    negative_prompt: str = ""  # of NASA-T; none: PG-SB alone

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not 0 <= low < high:
            raise UserError(f"guidance_range={low}, {high}: 0 <= low < high is needed")


class SNOOPI(VSD):
    """:class:`VSD` with a scale for each sample. It needs ``guide``: UserError without one.

    ``negative``, of one sample, is what a negative prompt tells, and ``guide_away`` guides the
    teacher away from it; UserError for a network whose attention cannot take it.
    """

    Config = SNOOPIConfig
    card = MethodCard(
        name="snoopi",
        title="One-step diffusion with proper guidance (SNOOPI)",
        paper="Nguyen et al. 2024, arXiv:2412.02687",
        needs=("critic",),
        guidance="both scores, a random scale a sample",
        teachers=("any denoiser with a null conditioning",),
    )

    def __init__(
        self,
        generator: Role,
        critic: Role,
        teacher: Denoises,
        *rest: Any,
        negative: Conditioning | None = None,
        guide_away: Guide | None = None,
        **options: Any,
    ) -> None:
        super().__init__(generator, critic, teacher, *rest, **options)
        self.negative = negative
        self.guide_real = guide_away or self.guide
        if self.guide is None or self.guide_real is None:
            raise UserError("guidance_range needs a guide, and there is none")
        self.guide(teacher, self.config.guidance_range[1])  # UserError if it cannot be
        if negative is not None:
            steer(generator.module.backbone.network)
            generator.drop_view()

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """The null conditioning, and the negative prompt's; UserError without the encoders."""
        found = super().more(teacher, config)
        if config.negative_prompt:
            if not teacher.is_told_by_text:
                raise UserError(
                    f"{teacher.name} is not told by text: leave method.negative_prompt out"
                )
            if teacher.null_cond is None:
                raise UserError(
                    f"{teacher.name} has no null conditioning whose place a negative prompt could "
                    "take: leave method.negative_prompt out"
                )
            negative = teacher.encode([config.negative_prompt])
            away = guide_of(replace(teacher, null_cond=negative))
            found |= {"negative": negative, "guide_away": away}
        return found

    def scores(self, noisy: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x0_real, x0_fake) under the same w, (B,), which is 1 outside ``guidance_interval``."""
        assert self.guide is not None
        assert self.guide_real is not None
        w = batch.draws.uniform(len(noisy.x_t), *self.config.guidance_range)
        low, high = self.config.guidance_interval
        w = torch.where((low < noisy.t) & (noisy.t <= high), w, 1.0)
        real = self.guide_real(self.teacher_at(batch), w)
        fake = self.guide(self.critic.frozen, w)
        return real(*noisy).x0_hat, fake(*noisy).x0_hat

    def student(self, generator: Denoises, batch: Batch) -> Tensor:
        """The student's x0, with the negative prompt taken away a times, if there is one."""
        if self.negative is not None:
            a = batch.draws.uniform(batch.cond.batch_size)
            batch = batch._replace(cond=with_negative(batch.cond, self.negative, a))
        return super().student(generator, batch)
