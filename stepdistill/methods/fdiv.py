"""f-distill: distribution matching under any f-divergence (Xu et al. 2025, arXiv:2502.15681).

With r = p/q, teacher over generator, the divergence D_f = E_q f(r) has the gradient of the reverse
KL, sample by sample, times

    h(r) = r^2 f''(r)                                                            (Eq. 6)

The ratio is the discriminator's, whose logit at its optimum is log r, at the very x_t that teacher
and critic see: no network is called that DMD2 does not call. Ratios are divided by their mean at
about the same t, and h by its mean, so that only their course over the samples matters. h grows
from reverse KL's 1 over the first ``ramp`` iterations: an untrained discriminator knows no ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..divergences import Divergence, divergence_of
from ..draws import Draws
from ..errors import UserError
from ..running_means import RunningMeans
from ..schedules import expand_like
from ..teachers import Teacher
from .base import Batch, MethodCard
from .dmd2 import DMD2, DMD2Config
from .matching import Seen

DRAWN = 10_000  # times, to cut the bins by


@dataclass(frozen=True)
class FDistillConfig(DMD2Config):
    """The published code's values; the divergence of its ImageNet-64 and COCO results."""

    gan_own_noise: bool = False  # never: the ratio is taken at the matching (t, eps)
    divergence: str = "jensen_shannon"  # a name, or "module:function" of log r (B,) that gives h
    f: str = ""  # instead: "module:function" of r (B,) that gives f, twice differentiable
    ratio_min: float = 0.1  # ratios are clamped to [ratio_min, ratio_max]
    ratio_max: float = 20.0  # see ratio_min
    bins: int = 10  # of t, with equally many samples, in each of which the mean ratio is 1
    bin_decay: float = 0.5  # of the means from one generator update to the next
    ramp: int = 1000  # iterations over which h grows from 1 to its own values; 0: at once

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gan_own_noise or self.gan_weight == 0:
            raise UserError(
                "f-distill takes its ratio from the GAN at the matching noise: gan_weight must be "
                "above 0 and gan_own_noise false"
            )
        if not 0 < self.ratio_min < self.ratio_max < math.inf:
            raise UserError(
                f"ratio_min={self.ratio_min}, ratio_max={self.ratio_max}: 0 < ratio_min < "
                "ratio_max is needed"
            )
        if self.bins < 1 or self.ramp < 0 or not 0 <= self.bin_decay < 1:
            raise UserError("bins must be at least 1, ramp at least 0, and bin_decay in [0, 1)")


class FDistill(DMD2):
    """:class:`DMD2` whose gradient is weighed by h; ``divergence`` gives h of log r."""

    Config = FDistillConfig
    card = MethodCard(
        name="fdiv",
        title="f-divergence distribution matching (f-distill)",
        paper="Xu et al. 2025, arXiv:2502.15681",
        needs=("critic", "data"),
        guidance="real score",
        teachers=("any denoiser",),
    )

    def __init__(self, *parts: Any, divergence: Divergence, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.divergence = divergence
        bins, decay = self.config.bins, self.config.bin_decay
        self.statistics = {"ratio": RunningMeans(bins, decay), "h": RunningMeans(1, decay)}
        t = self.matching_times.draw(self.schedule, Draws(0, 0, "bins"), DRAWN)
        self.edges = t.quantile(torch.arange(1, bins, dtype=t.dtype, device=t.device) / bins)

    @classmethod
    def more(cls, teacher: Teacher, config: Any) -> dict[str, Any]:
        """The head, and the divergence that the config names."""
        return {
            **super().more(teacher, config),
            "divergence": divergence_of(config.divergence, config.f),
        }

    def gradient(self, seen: Seen, batch: Batch) -> Tensor:
        """At x0: DMD's, times h(r) / mean h or, during the ramp, something between 1 and that."""
        assert seen.logits is not None
        ramp = min(1.0, batch.draws.iteration / max(self.config.ramp, 1))
        weight = 1 + ramp * (self.weight(seen.logits, seen.noisy.t) - 1)
        return expand_like(weight, seen.x0) * super().gradient(seen, batch)

    def weight(self, logits: Tensor, t: Tensor) -> Tensor:
        """h(r) / mean h, (B,), with r divided by its mean among samples of about the same t."""
        ratio, h_mean = self.statistics["ratio"], self.statistics["h"]
        low, high = math.log(self.config.ratio_min), math.log(self.config.ratio_max)
        log_ratio = logits.clamp(low, high)
        index = torch.bucketize(t, self.edges.to(t.device))
        h = self.divergence(log_ratio - ratio.at(index).log())
        everywhere = torch.zeros_like(index)
        weight = h / h_mean.at(everywhere)
        ratio.add(log_ratio.exp(), index)
        h_mean.add(h, everywhere)
        return weight
