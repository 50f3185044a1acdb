"""Students of any teacher, measured during training by the metrics of ``stepdistill eval``.

Without a reference they are compared with the teacher's own samples, told the same. The Frechet
distance of few samples is too large, by about as much each time; the kernel distance (KID) is not.
Diversity is the mean distance of two samples that are told the same, over the teacher's (1 is as
diverse). The teacher is sampled once, at the start, and what it gave is kept in the run folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import NonFiniteError, UserError
from ..evaluation.measures.image_metrics import METRICS, Compared, Metric
from ..evaluation.measures.measure import mean_score
from ..evaluation.reading.measuring import Measured
from ..methods.base import Method
from ..metrics.diversity import pairwise_distance
from ..metrics.kid import paired_squared_mmd
from ..runs import RunFolder
from ..watching import Metrics, shared
from .baseline import FILE, Baseline, load_baseline, measured, save_baseline, teachers_own
from .seeing import Seeing, Seen, student_sampler, teacher_sampler
from .wanted import Networks, Wanted

SEED = 0  # of the kernel distance's subsets


@dataclass(frozen=True)
class Measuring:
    """How the students of a run are measured, checked before it begins.

    Networks are on the device while they measure alone: they are opened anew each time.
    ``references`` are by the keys of the views that compare; empty where the teacher's own samples
    are the reference. ``facts`` are all that the numbers depend on.
    """

    wanted: Wanted
    seeing: Seeing
    guidance_scale: float
    references: Mapping[str, Measured]
    facts: Mapping[str, Any]

    def evaluation(
        self, method: Method, run: RunFolder, accelerator: Accelerator
    ) -> Callable[[], Metrics]:
        """Measures the generator as it is when called, on all ranks; the metrics are the main
        process's alone. The teacher is sampled first, unless ``run`` has its numbers."""
        baseline = self.baseline(run, accelerator)
        student = student_sampler(method, self.seeing.told)

        def evaluate() -> Metrics:
            networks = self.wanted.open(accelerator.device)
            seen = self.seeing.seen(student, range(self.seeing.order.num), networks)
            if baseline is None:
                return {}
            return self.compare(seen, networks, baseline)

        return evaluate

    def compare(self, seen: Seen, networks: Networks, baseline: Baseline) -> Metrics:
        """The metrics of what was seen of students. NonFiniteError if one is NaN or Inf."""
        both = {
            key: Compared(
                measured(own, "the student's samples"),
                baseline.targets.get(key),
                networks.views[key],
                SEED,
            )
            for key, own in seen.features.items()
        }
        found: dict[str, float] = {}
        for measure in self.wanted.measures:
            if measure.scorer is not None:
                values = {measure.name: mean_score(seen.scores[measure.scorer])}
            else:
                metric = METRICS[measure.name]
                values = self._compared(measure.name, metric, both[measure.seen.key])
            found |= {self.wanted.called(measure, name): own for name, own in values.items()}
        base = seen.features[self.wanted.base.key]
        found |= {"diversity": self.spread(base) / baseline.spread, "num_samples": len(base)}
        if not torch.tensor([*found.values()]).isfinite().all():
            raise NonFiniteError(f"NaN or Inf where students are measured: {found}")
        return found

    def _compared(self, name: str, metric: Metric, both: Compared) -> dict[str, float]:
        """Of a student and a teacher, told the same row by row, the kernel distance in pairs: over
        independent samples it would come out too small."""
        if name == "kid" and self.wanted.by_teacher:
            return {name: float(paired_squared_mmd(*both.kept))}
        return metric.values(both)[0]

    def baseline(self, run: RunFolder, accelerator: Accelerator) -> Baseline | None:
        """On the main process, which keeps it in ``run``; None on others, which help to sample.

        UserError for one in ``run`` that was measured otherwise.
        """
        path, found = run.path / FILE, None
        if accelerator.is_main_process and path.exists():
            found = self._against(*load_baseline(path, self.facts))
        if shared(accelerator, found is not None):
            return found
        kept = self.wanted.compared if self.wanted.by_teacher else []
        order, key = self.seeing.order, self.wanted.base.key
        num = order.num if kept else order.near
        if accelerator.is_main_process:
            print(f"sampling the teacher {num:,} times, once, into {path}", file=sys.stderr)
        views = self.wanted.open_views(accelerator.device)
        networks = Networks({own: views[own] for own in views if own in (key, *kept)}, {})
        teacher = teacher_sampler(self.seeing.told, self.guidance_scale)
        # other noise than the students': with the same the distance would come out too small
        seeds = range(order.num, order.num + num)
        features = self.seeing.seen(teacher, seeds, networks, "sampling the teacher").features
        if not accelerator.is_main_process:
            return None
        spread = self.spread(features[key])
        if not spread > 0:
            raise UserError(
                f"the teacher gives the same picture each time, as {key} features see it, so there "
                "is no diversity to keep: set evaluate_every=0, or choose other --eval.features"
            )
        features = {own: features[own] for own in kept}
        save_baseline(features, spread, path, self.facts)
        return self._against(features, spread)

    def _against(self, features: Mapping[str, Tensor], spread: float) -> Baseline:
        """With the references, or else the teacher's own ``features``."""
        if self.wanted.by_teacher:
            return teachers_own(features, spread)
        return Baseline(self.references, spread)

    def spread(self, features: Tensor) -> float:
        """Mean Euclidean distance of two samples that are told the same."""
        order = self.seeing.order
        groups = [slice(k, None, order.kinds) for k in range(order.kinds)]
        return float(pairwise_distance(features[: order.near], groups).mean())
