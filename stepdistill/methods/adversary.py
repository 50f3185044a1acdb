"""The adversarial terms beside a matching loss: on which noisy samples, and with which regulariser.

    L_D = E[ softplus(D(fake)) + softplus(-D(real)) ],   L_G = E[ softplus(-D(fake)) ]

on noised samples, fake and real at the same t (DMD2, arXiv:2405.14867, section 4.3), and, where
asked for, approximate R1: E[ (D(real) - D(real + small noise))^2 ] (APT, arXiv:2501.08316, Eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..discriminator import Discriminator, Noisy
from ..errors import UserError
from ..losses import approximate_r1, gan_discriminator, gan_generator
from ..roles import Role
from ..schedules import Schedule
from ..times import TimeLaw
from .base import Batch


class Judged(NamedTuple):
    """The critic's x0_hat, a discriminator's logits (B,), and the generator's adversarial loss.

    ``x0_real`` is the teacher's x0_hat where the discriminator's pass has made it.
    """

    x0_fake: Tensor
    x0_real: Tensor | None
    logits: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Adversary:
    """A discriminator, and the samples that it is shown.

    With ``times`` it is shown samples of its own (t, eps), else those that the critic sees anyway.
    ``r1_std`` is in units of x0.
    """

    discriminator: Discriminator
    schedule: Schedule
    times: TimeLaw | None
    r1_weight: float = 0.0
    r1_std: float = 0.1

    def judge(self, critic: Role, fake: Noisy, x0: Tensor, batch: Batch) -> Judged:
        """In the generator's update, of its noisy samples ``fake``: nothing learns but x0."""
        if self.times is None:
            x0_fake, x0_real, logits = self.discriminator.judge(critic, fake)
            return Judged(x0_fake, x0_real, logits, gan_generator(logits).mean())
        with torch.no_grad():
            x0_fake = critic.frozen(*fake).x0_hat
        logits = self.discriminator.logits(critic, self._noised(x0, batch, self.times))
        return Judged(x0_fake, None, logits, gan_generator(logits).mean())

    def learn(self, critic: Role, x0: Tensor, noisy: Noisy, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the critic's x0_hat of ``noisy``, the discriminator's loss), in one pass of the critic.

        UserError for data without real samples.
        """
        fake = noisy if self.times is None else self._noised(x0, batch, self.times)
        judged = judged_samples(self.schedule, fake, batch, self.r1_weight, self.r1_std)
        x0_hat, logits = self.discriminator.learn(critic, noisy, judged)
        return x0_hat, discriminator_loss(logits, self.r1_weight)

    def _noised(self, x0: Tensor, batch: Batch, times: TimeLaw) -> Noisy:
        t = times.draw(self.schedule, batch.draws, len(x0))
        x_t = self.schedule.add_noise(x0, t, batch.draws.normal_like(x0))
        return Noisy(x_t, t, batch.cond)


def judged_samples(
    schedule: Schedule, fake: Noisy, batch: Batch, r1_weight: float, r1_std: float
) -> tuple[Noisy, ...]:
    """``fake``, the real samples at its times and, for R1, these once more with a little noise.

    UserError for data without real samples.
    """
    if batch.x0 is None:
        raise UserError("a GAN needs real samples, and the data has none: give data, or no GAN")
    t, eps = fake.t, batch.draws.normal_like(batch.x0)
    judged = [fake, Noisy(schedule.add_noise(batch.x0, t, eps), t, batch.cond)]
    if r1_weight > 0:
        nudged = batch.x0 + r1_std * batch.draws.normal_like(batch.x0)
        judged.append(Noisy(schedule.add_noise(nudged, t, eps), t, batch.cond))
    return tuple(judged)


def discriminator_loss(logits: Sequence[Tensor], r1_weight: float) -> Tensor:
    """L_D of the logits of :func:`judged_samples`, with r1_weight times approximate R1."""
    loss = gan_discriminator(logits[0], logits[1]).mean()
    if r1_weight > 0:
        loss = loss + r1_weight * approximate_r1(logits[1], logits[2]).mean()
    return loss


def check_r1(r1_weight: float, r1_std: float) -> None:
    """UserError for a regulariser that cannot be meant."""
    if not 0 <= r1_weight < math.inf:
        raise UserError(f"r1_weight must be at least 0, got {r1_weight}")
    if not 0 < r1_std < math.inf:
        raise UserError(f"r1_std must be above 0, got {r1_std}")
