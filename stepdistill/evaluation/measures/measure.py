"""The metrics of an evaluation, each computed from what the shards hold.

A measure names the views and scorers it needs; ``values`` reads their results in order, so it does
not matter which process made them, nor when.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...errors import UserError
from ...metrics.features import Features
from ...metrics.intervals import PARTS, dealt, frechet_error, split_statistics, standard_error
from ..reading.measuring import Measured
from .image_metrics import METRICS, Compared, Metric, classes_of
from .views import View

LPIPS = "lpips"  # the key of its network
Values = dict[str, float]


class Evidence(Protocol):
    """What one repeat of an evaluation has left."""

    @property
    def num(self) -> int:
        """Samples."""

    def compared(self, view: View) -> Compared:
        """Its features beside the reference's."""

    def blocks(self, view: View) -> Iterator[Tensor]:
        """The features (B, D) of all samples, in order."""

    def scores(self, scorer: str) -> Tensor:
        """Each sample's score (N,)."""

    def groups(self) -> Tensor:
        """The diversity of each prompt that was sampled several times (P,)."""

    def group_sizes(self) -> dict[str, Any]:
        """How many such prompts, and how often each was sampled."""

    def told(self) -> list[Any]:
        """What each sample is told, in order."""

    def strata(self) -> Tensor | None:
        """A number for the class or prompt of each sample (N,), where each has a fixed number of
        samples."""


@dataclass(frozen=True)
class Measure(ABC):
    """One metric, or a few that are had together; ``about`` says whose it is.

    ``view`` is what it looks through, ``scorer`` whose scores it takes.
    """

    name: str
    about: str
    view: View | None = None
    scorer: str | None = None

    @property
    def on(self) -> str | None:
        """The key of the view or scorer that it is measured on."""
        return self.scorer if self.view is None else self.view.key

    @property
    def compares(self) -> bool:
        """Whether it needs a reference."""
        return False

    @property
    def keeps(self) -> tuple[bool, bool]:
        """Whether it needs all features, of the samples and of the reference, at once."""
        return False, False

    @abstractmethod
    def values(self, evidence: Evidence) -> Values:
        """Metric -> value."""

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Metric -> standard error, where one can be told; ``replicates`` of a bootstrap."""
        return {}

    def details(self, evidence: Evidence) -> dict[str, Any]:
        """How the values were had, beyond what the measure always does."""
        return {}

    @property
    def seen(self) -> View:
        """The view of a measure that has one."""
        assert self.view is not None
        return self.view

    @property
    def scored(self) -> str:
        """The scorer of a measure that has one."""
        assert self.scorer is not None
        return self.scorer


@dataclass(frozen=True)
class Comparison(Measure):
    """One of ``image_metrics``, through a view."""

    metric: Metric = field(kw_only=True)

    @property
    def compares(self) -> bool:
        """As the metric says."""
        return self.metric.compares

    @property
    def keeps(self) -> tuple[bool, bool]:
        """As the metric says."""
        return self.metric.keeps

    def values(self, evidence: Evidence) -> Values:
        """The metric's."""
        return evidence.compared(self.seen).take(self.name, self.metric)[0]

    def details(self, evidence: Evidence) -> dict[str, Any]:
        """The metric's."""
        return evidence.compared(self.seen).take(self.name, self.metric)[1]


class Frechet(Comparison):
    """A Frechet distance, whose standard error a bootstrap over parts of the samples tells."""

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Nothing without replicates, nor of fewer than two samples a part."""
        if not replicates or evidence.num < 2 * PARTS:
            return {}
        theirs = evidence.compared(self.seen).b.statistics
        parts = split_statistics(evidence.blocks(self.seen), dealt(evidence.num, evidence.strata()))
        return {self.name: frechet_error(parts, theirs, replicates)}


def check_samples(
    measures: Sequence[Measure], num: int, views: Mapping[str, Features], option: str
) -> None:
    """UserError where ``num`` samples, the value of ``option``, are too few for a metric, or an
    extractor has no classes."""
    for measure in measures:
        if not isinstance(measure, Comparison):
            continue
        metric = measure.metric
        if metric.of_classes:
            classes_of(views[measure.seen.key])
        if num < metric.least:
            raise UserError(f"{measure.name} needs {option} of {metric.least} or more: {num}")


def check_references(measures: Sequence[Measure], found: Mapping[str, Measured]) -> None:
    """UserError where a reference, by the key of its view, has too few samples for a metric."""
    for measure in measures:
        if not isinstance(measure, Comparison) or not measure.compares:
            continue
        own, least = found.get(measure.seen.key), measure.metric.least
        if own is not None and 0 < own.statistics.count < least:  # 0 where a file tells none
            raise UserError(
                f"{measure.name} needs {least} samples or more of a reference, and "
                f"{own.record['path']} has {own.statistics.count}"
            )


def comparison(name: str, view: View, about: str = "") -> Measure:
    """The image metric of that name, through ``view``."""
    metric = METRICS[name]
    kind = Frechet if metric.gaussian else Comparison
    return kind(name, about or f"{metric.about.split(',')[0]}: {view.key}", view, metric=metric)


def mean_score(scores: Tensor) -> float:
    """Of scores (N,), in float64."""
    return float(scores.double().mean())


class MeanScore(Measure):
    """The mean of a score of single images."""

    def values(self, evidence: Evidence) -> Values:
        """In float64."""
        return {self.name: mean_score(evidence.scores(self.scored))}

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Of the mean."""
        return {self.name: standard_error(evidence.scores(self.scored))}


class ClippedMean(MeanScore):
    """The mean, or 0 where it is below: torchmetrics' CLIPScore."""

    def values(self, evidence: Evidence) -> Values:
        """In float64."""
        return {name: max(0.0, value) for name, value in super().values(evidence).items()}


class PromptDiversity(Measure):
    """The mean LPIPS distance of two samples of one prompt, over prompts."""

    @property
    def on(self) -> str:
        """LPIPS."""
        return LPIPS

    def values(self, evidence: Evidence) -> Values:
        """Of the prompts that were sampled several times."""
        return {self.name: float(evidence.groups().double().mean())}

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Of the mean over prompts; nothing of a single one."""
        found = evidence.groups()
        return {self.name: standard_error(found)} if len(found) > 1 else {}

    def details(self, evidence: Evidence) -> dict[str, Any]:
        """How many prompts, and samples of each."""
        return evidence.group_sizes()
