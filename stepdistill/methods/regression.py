"""Regression on noise-image pairs: the warm-up of a one-step student.

    L = E[ d( G(z, t_1, c), x0(z, c) ) ]                               (DMD, Eq. 9, there d = LPIPS)

where x0(z, c) is what the teacher's deterministic sampler makes of the noise z. DMD (Yin et al.
2024a, arXiv:2311.18828) keeps this loss beside distribution matching; DMD2 (Yin et al. 2024b,
arXiv:2405.14867) drops it, but starts SDXL's one-step student, which is called at t = 399 on pure
noise, with a short regression on 10,000 pairs. ``train dmd2 --init RUN`` goes on from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from ..losses import Distance, squared_error
from ..plans import StepPlan, start
from ..roles import FULL, LoRAOptions, Role, trainable_role
from ..teachers import Teacher
from .base import Batch, Loss, MethodCard
from .rollout import statistics


@dataclass(frozen=True)
class PairOptions:
    """What the distance of a pair is."""

    lpips: bool = False  # that of decoded samples, by VGG-16; it needs the extra "scores"
    lpips_weights: str = ""  # its file; default: STEPDISTILL_VGG16, or torchvision's own place

    @property
    def decodes(self) -> bool:
        """Whether the teacher's autoencoder is called in training."""
        return self.lpips

    def distance(self, teacher: Teacher, otherwise: Distance) -> Distance:
        """LPIPS if it is asked for. UserError where its weights are not."""
        if not self.lpips:
            if self.lpips_weights:
                raise UserError("lpips_weights is of LPIPS: set lpips=true too, or leave it out")
            return otherwise
        from ..perceptual import lpips_of  # with torchvision, which takes a while

        return lpips_of(teacher, self.lpips_weights)


@dataclass(frozen=True)
class RegressionConfig(PairOptions):
    """DMD2's warm-up of SDXL."""

    lr: float = 1e-5  # constant but for warm-up and decay


class Regression:
    """One loss over one role; ``distance`` is d. UserError for a plan of several steps."""

    Config = RegressionConfig
    card = MethodCard(
        name="regression",
        title="Regression on the teacher's noise-image pairs",
        paper="Yin et al. 2024, arXiv:2311.18828 and arXiv:2405.14867",
        needs=("pairs of noise and sample, from stepdistill precompute --pairs",),
        guidance="in the pairs",
        teachers=("any with a deterministic sampler",),
    )

    def __init__(
        self,
        generator: Role,
        plan: StepPlan,
        config: RegressionConfig,
        distance: Distance = squared_error,
    ) -> None:
        if plan.steps > 1:
            raise UserError(
                f"regression trains one step, and the plan has {plan.steps}: set steps=1, or give "
                "times its first time alone"
            )
        self.generator, self.plan, self.config = generator, plan, config
        self.distance = distance
        self.roles = {"generator": generator}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": config.lr}
        self.critic_steps = 1
        self.needs_data = True

    @classmethod
    def from_teacher(
        cls,
        teacher: Teacher,
        plan: StepPlan,
        config: RegressionConfig,
        lora: LoRAOptions = FULL,
        distance: Distance = squared_error,
    ) -> Regression:
        """The generator starts from the teacher's weights; LPIPS, if asked for, is the distance."""
        role = trainable_role("generator", teacher.student(), lora, teacher.lora_targets)
        return cls(role, plan, config, config.distance(teacher, distance))

    def generator_loss(self, batch: Batch) -> Loss:
        """The distance of the student's x0 to the teacher's, from the same noise."""
        x0_hat, value = regress(self.generator, self.plan, batch, self.distance)
        return Loss(value, {"distance": value.detach(), **statistics(x0_hat)})


def regress(
    generator: Role, plan: StepPlan, batch: Batch, distance: Distance
) -> tuple[Tensor, Tensor]:
    """(x0_hat of the plan's first step, its mean distance to what the teacher made of the same z).

    UserError for data that is no pairs.
    """
    if batch.x0 is None or batch.z is None:
        raise UserError(
            "regression learns from pairs of noise and sample, and the data has none: make "
            "some with stepdistill precompute --pairs"
        )
    x_t = start(plan, generator.module.schedule, batch.z)
    x0_hat: Tensor = generator(x_t, plan.time(0, x_t), batch.cond).x0_hat
    return x0_hat, distance(x0_hat, batch.x0).mean()
