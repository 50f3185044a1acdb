"""The generator's samples, on its own trajectory, and noise on top of them.

    x0 = G(x_j, t_j, c),   x_j made by the steps before it,   x_t = alpha_t x0 + sigma_t eps

(DMD2, arXiv:2405.14867, section 4.5: backward simulation, which needs no data.)
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..denoisers import Denoises
from ..discriminator import Noisy
from ..plans import StepPlan, backward_simulation, generate
from ..roles import Role
from ..schedules import Schedule
from ..times import TimeLaw
from .base import Batch


class RollsOut:
    """A few-step generator of samples of ``sample_shape``.

    With ``through_all_steps`` they are those of the last step, through all of them.
    """

    def __init__(
        self,
        generator: Role,
        schedule: Schedule,
        plan: StepPlan,
        sample_shape: tuple[int, ...],
        through_all_steps: bool,
    ) -> None:
        self.generator, self.schedule, self.sample_shape = generator, schedule, sample_shape
        self.plan = replace(plan, whole=through_all_steps)

    def student(self, generator: Denoises, batch: Batch) -> Tensor:
        """The student's x0 at the last step of its plan or, as published, at a random one.

        The random step is the same on all ranks.
        """
        shape = (batch.cond.batch_size, *self.sample_shape)
        if batch.x0 is not None:  # real samples may come in several sizes
            shape = tuple(batch.x0.shape)
        z = batch.draws.normal(*shape)

        def fresh_eps() -> Tensor:
            return batch.draws.normal(*shape)

        if self.plan.whole:
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

    def noised(self, x0: Tensor, batch: Batch, times: TimeLaw) -> Noisy:
        """x_t with t of ``times``, and fresh noise."""
        t = times.draw(self.schedule, batch.draws, len(x0))
        x_t = self.schedule.add_noise(x0, t, batch.draws.normal_like(x0))
        return Noisy(x_t, t, batch.cond)


def statistics(x0: Tensor) -> dict[str, Tensor]:
    """What is logged of a student's samples."""
    return {"x0_mean": x0.detach().mean(), "x0_std": x0.detach().std()}
