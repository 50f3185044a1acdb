"""SFD: score forgetting distillation, which distils and forgets at once.

(Chen et al. 2024, arXiv:2409.11219.) What the generator makes when it is asked for a forgotten c_f
is matched to what the teacher makes of another c_o, and all the rest as SiD does:

    L_G = L_SiD(c, c)  +  forget_weight L_SiD(real: c_o, fake: c_f),  x0 = G(z, c_f) in the second
    L_F = E_c |x0_fake - x0|^2  +  forget_weight E_{c_f} |x0_fake - x0|^2

so that at the optimum G(., c_f) follows the teacher's c_o, and the data need not show what is to be
forgotten. Where it does, a sample that is told c_f is matched to c_o as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..discriminator import Noisy
from ..errors import UserError
from ..losses import sid_loss
from ..teachers import Teacher
from .base import Batch, Loss, MethodCard
from .sid import SiD, SiDConfig


@dataclass(frozen=True)
class SFDConfig(SiDConfig):
    """The published values on CIFAR-10."""

    forget: tuple[int | str, ...] = ()  # classes by number, or prompts, to be forgotten
    override: tuple[int | str, ...] = ()  # what is made instead, at random; none: any other class
    forget_weight: float = 0.01  # of the forgotten samples' losses beside the others'

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.forget_weight < math.inf:
            raise UserError(f"forget_weight must be above 0, got {self.forget_weight}")
        if both := set(map(str, self.forget)) & set(map(str, self.override)):
            raise UserError(f"override names what is to be forgotten: {', '.join(sorted(both))}")


class SFD(SiD):
    """:class:`SiD`, and what is made of ``forget`` is matched to ``override``, one row each."""

    Config = SFDConfig
    card = MethodCard(
        name="sfd",
        title="Score forgetting distillation",
        paper="Chen et al. 2024, arXiv:2409.11219",
        needs=("critic", "what to forget"),
        guidance="both scores and the critic's loss",
        teachers=("any denoiser that is told something",),
    )

    def __init__(
        self, *parts: Any, forget: Conditioning, override: Conditioning, **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self.forget, self.override = forget, override

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """What is forgotten and what is made instead, encoded; UserError where it cannot be."""
        forget, override = told(teacher, config.forget), told(teacher, config.override)
        if not forget:
            raise UserError("sfd needs something to forget: give method.forget")
        if not override and teacher.is_told_by_text:
            raise UserError("sfd needs prompts to make instead: give method.override")
        others = override or [k for k in range(teacher.num_classes or 0) if k not in forget]
        if not others:
            raise UserError("method.forget names every class: leave one to make instead")
        return {"forget": teacher.encode(forget), "override": teacher.encode(others)}

    def match(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Loss:
        """SiD's loss, and that of as many samples of what is to be forgotten."""
        retained = self.identity(x0, noisy, batch)
        asked = self.forgotten(batch)
        made = self.student(self.generator, asked)
        forgotten = self.identity(made, self.noised(made, asked, self.matching_times), asked)
        value = retained + self.config.forget_weight * forgotten
        return Loss(value, {"identity": retained.detach(), "forgetting": forgotten.detach()})

    def identity(self, x0: Tensor, noisy: Noisy, batch: Batch) -> Tensor:
        """SiD's loss, where the teacher is told c_o in place of c_f."""
        instead = noisy._replace(cond=self.overridden(noisy.cond, batch))
        x0_real, x0_fake = self.x0_real(instead, batch), self.x0_fake(noisy)
        return sid_loss(x0, x0_real, x0_fake, self.config.alpha).mean()

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's error on both kinds of samples."""
        retained, forgotten = super().critic_loss(batch), super().critic_loss(self.forgotten(batch))
        value = retained.value + self.config.forget_weight * forgotten.value
        return Loss(value, {**retained.logs, "forgotten": forgotten.logs["denoising"]})

    def forgotten(self, batch: Batch) -> Batch:
        """As many samples, each told one of what is to be forgotten."""
        cond = self.some_of(self.forget, batch, batch.cond.batch_size)
        return batch._replace(cond=batch.cond.replace(cond))

    def overridden(self, cond: Conditioning, batch: Batch) -> Conditioning:
        """``cond`` with another one in place of each that is to be forgotten."""
        rows = (self.forget.select(slice(i, i + 1)) for i in range(self.forget.batch_size))
        keep = ~torch.stack([cond.equals(row) for row in rows]).any(0)
        return cond.where(keep, self.some_of(self.override, batch, cond.batch_size))

    def some_of(self, told: Conditioning, batch: Batch, count: int) -> Conditioning:
        """``count`` rows of ``told`` at random."""
        index = (batch.draws.uniform(count) * told.batch_size).ceil().long() - 1
        return told.select(index.to(next(iter(told.values())).device))


def told(teacher: Teacher, values: tuple[int | str, ...]) -> list[Any]:
    """Prompts as text, classes as numbers; UserError for a class that the teacher lacks."""
    named = [str(value) for value in values]
    if teacher.is_told_by_text:
        return named
    known = [str(k) for k in range(teacher.num_classes or 0)]
    if unknown := [name for name in named if name not in known]:
        has = f"the classes 0 to {len(known) - 1}" if known else "no classes"
        raise UserError(f"{teacher.name} has {has}, and no {', '.join(unknown)} to forget or make")
    return [int(name) for name in named]
