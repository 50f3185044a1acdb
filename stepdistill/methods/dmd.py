"""DMD: distribution matching distillation (Yin et al. 2024a, arXiv:2311.18828).

    L = D_KL  +  regression_weight E[ d( G(z, t_1, c), x0(z, c) ) ]      (the second: Eq. 9)

The gradient of the KL is DMD2's without a GAN; the regression on noise-image pairs of the teacher's
deterministic sampler keeps the modes, so that one critic update a generator update is enough. The
samples that are matched start from noise of their own. Where the plan has several steps, the first
one's x0 is what the pairs are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..losses import Distance, mean_pseudo_huber
from ..teachers import Teacher
from .base import Batch, Loss, MethodCard
from .matching import Matching, MatchingConfig, check_at_least_0
from .regression import PairOptions, regress


@dataclass(frozen=True)
class DMDConfig(PairOptions, MatchingConfig):
    """One critic update a generator update, and the weight of the regression, as in the paper."""

    critic_steps: int = 1  # iterations a generator update: the critic learns in each
    regression_weight: float = 0.25  # of the pairs' distance

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_0(self, "regression_weight")


class DMD(Matching):
    """:class:`Matching` with a regression on pairs, by ``distance``."""

    Config = DMDConfig
    card = MethodCard(
        name="dmd",
        title="Distribution matching distillation",
        paper="Yin et al. 2024, arXiv:2311.18828",
        needs=("critic", "pairs of noise and sample, from stepdistill precompute --pairs"),
        guidance="real score, and in the pairs",
        teachers=("any with a deterministic sampler",),
    )

    def __init__(self, *roles: Any, distance: Distance = mean_pseudo_huber, **options: Any) -> None:
        super().__init__(*roles, **options)
        self.distance, self.needs_data = distance, True

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """The distance of pairs."""
        return {"distance": config.distance(teacher, mean_pseudo_huber)}

    def generator_loss(self, batch: Batch) -> Loss:
        """The matching, and the weighted distance of the pairs."""
        matching = super().generator_loss(batch)
        _, regression = regress(self.generator, self.plan, batch, self.distance)
        value = matching.value + self.config.regression_weight * regression
        return Loss(value, {**matching.logs, "regression": regression.detach()})
