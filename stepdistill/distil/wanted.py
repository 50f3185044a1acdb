"""What is to be measured of students during training: the metrics of ``stepdistill eval`` by name,
the views and scorers that they take, and what their values are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..evaluation.measures.image_metrics import METRICS, check_extractor
from ..evaluation.measures.measure import (
    MeanScore,
    Measure,
    check_references,
    check_samples,
    comparison,
)
from ..evaluation.measures.views import View
from ..evaluation.protocols.general import TEXT_SCORES
from ..evaluation.reading.measuring import Measured
from ..metrics.features import Features, Scorer
from ..metrics.metric_names import of_teacher
from ..metrics.scorers import scorer
from ..parser import nearest
from .told import Told

DEFAULT = ("fid", "kid")
ALWAYS = ("diversity", "num_samples")  # the diversity on the chosen extractor


@dataclass(frozen=True)
class Networks:
    """What samples are seen by: extractors by the keys of their views, and scorers by name."""

    views: Mapping[str, Features]
    scorers: Mapping[str, Scorer]


@dataclass(frozen=True)
class Wanted:
    """``base`` is the view of the chosen extractor, on which the diversity is taken too;
    ``by_teacher`` says that the reference is the teacher's own samples."""

    measures: tuple[Measure, ...]
    base: View
    by_teacher: bool
    weights: Mapping[str, str]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        extractor: str,
        weights: Mapping[str, str],
        by_teacher: bool,
        told: Told,
    ) -> Wanted:
        """UserError for a name that is not there, a score where no prompts are known, and a FID on
        features that no FID is of."""
        if not by_teacher:
            check_extractor(names, extractor)
        measures = [_measure(name, extractor, told) for name in dict.fromkeys(names)]
        return cls(tuple(measures), View(extractor), by_teacher, weights)

    @property
    def views(self) -> dict[str, View]:
        """By their keys, that of the diversity first."""
        found = [self.base, *(m.view for m in self.measures if m.view is not None)]
        return {view.key: view for view in found}

    @property
    def compared(self) -> list[str]:
        """The keys of the views that the reference is seen through."""
        return list(dict.fromkeys(m.seen.key for m in self.measures if m.compares))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all values."""
        given = [self.called(m, value) for m in self.measures for value in values_of(m)]
        return (*given, *ALWAYS)

    def called(self, measure: Measure, value: str) -> str:
        """The name of a measure's value."""
        return of_teacher(value) if measure.compares and self.by_teacher else value

    def open_views(self, device: torch.device | str) -> dict[str, Features]:
        """Each extractor behind its view. UserError without its weights."""
        given = self.weights
        return {k: v.open(given.get(v.extractor), device) for k, v in self.views.items()}

    def open(self, device: torch.device | str) -> Networks:
        """All of them."""
        names = [m.scorer for m in self.measures if m.scorer is not None]
        scorers = {name: scorer(name, self.weights, device) for name in names}
        return Networks(self.open_views(device), scorers)

    def check(self, num: int, networks: Networks, targets: Mapping[str, Measured]) -> None:
        """UserError where ``num`` samples or those of a reference are too few, or an extractor has
        no classes."""
        check_samples(self.measures, num, networks.views, "evaluate_samples")
        check_references(self.measures, targets)


def values_of(measure: Measure) -> tuple[str, ...]:
    """What the values of a measure are called by ``stepdistill eval``."""
    own = METRICS[measure.name].gives if measure.name in METRICS else ()
    return own or (measure.name,)


def _measure(name: str, extractor: str, told: Told) -> Measure:
    if name in METRICS:
        return comparison(name, METRICS[name].view(extractor, None, None))
    if name not in TEXT_SCORES:
        known = (*METRICS, *TEXT_SCORES)
        near = nearest(name, known)
        hint = f" Did you mean {near}?" if near else ""
        raise UserError(
            f"eval.metrics has no {name} for students in training.{hint} There is: "
            f"{', '.join(known)}"
        )
    if not told.teacher.is_told_by_text:
        raise UserError(
            f"{name} scores images and their prompts, and {told.teacher.name} is not told by text: "
            "leave it out of --eval.metrics"
        )
    if told.texts is None:
        raise UserError(
            f"{name} scores images and their prompts, which the training data does not tell: give "
            "--eval.prompts or --validation_prompts"
        )
    scorer, about = TEXT_SCORES[name]
    return MeanScore(name, about, scorer=scorer)
