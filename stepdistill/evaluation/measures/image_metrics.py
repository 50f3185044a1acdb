"""The metrics of two sets of images, by name: what each looks through, keeps and gives."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ...errors import UserError
from ...metrics.cmmd import cmmd
from ...metrics.features import Features
from ...metrics.frechet import frechet_distance
from ...metrics.inception_score import SPLITS, in_order, inception_score, shuffled
from ...metrics.kid import kernel_distance
from ...metrics.neighbours import DENSITY_NEAREST, Neighbours, neighbours
from ...metrics.rows import BLOCK
from ..reading.measuring import Measured
from .views import View

PATCH = 299  # pixels that Inception sees: nothing is resized
Values = dict[str, float]


@dataclass(frozen=True)
class Compared:
    """Both sides through one extractor, and the seed of what is drawn.

    ``reference`` is None where nothing is compared with it.
    """

    a: Measured
    reference: Measured | None
    features: Features
    seed: int
    _taken: dict[str, tuple[Values, dict[str, Any]]] = field(default_factory=dict, repr=False)

    @property
    def b(self) -> Measured:
        """The reference of a metric that compares."""
        assert self.reference is not None
        return self.reference

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """The features of both. UserError where a side has statistics alone."""
        for side in (self.a, self.b):
            if side.features is None:
                raise UserError(statistics_alone(side.record["path"]))
        assert self.a.features is not None
        assert self.b.features is not None
        return self.a.features, self.b.features

    def take(self, name: str, metric: Metric) -> tuple[Values, dict[str, Any]]:
        """The values of a metric and how they were had, computed once."""
        if name not in self._taken:
            self._taken[name] = metric.values(self)
        return self._taken[name]

    @cached_property
    def neighbours(self) -> Neighbours:
        """Of one pass over all pairs, for the two metrics that are taken of it."""
        return neighbours(*self.kept)


@dataclass(frozen=True)
class Metric:
    """``values`` gives the metrics of a record and what else tells how they were had; ``keeps``
    says whether it needs the features of A and of B, ``compares`` whether it needs B at all;
    ``extractor`` is None for the chosen one. It takes ``least`` samples, and gives ``gives``, if
    that is not its own name; ``of_classes`` says whether the extractor must have some."""

    about: str
    values: Callable[[Compared], tuple[Values, dict[str, Any]]]
    keeps: tuple[bool, bool] = (True, True)
    extractor: str | None = None
    is_patch: bool = False
    compares: bool = True
    least: int = 2
    gives: tuple[str, ...] = ()
    of_classes: bool = False

    @property
    def gaussian(self) -> bool:
        """Whether it is of Gaussians alone: a Frechet distance."""
        return not any(self.keeps)

    def view(self, chosen: str, size: int | None, patch: int | None) -> View:
        """What it looks through. A patch is of the image as it is, whatever ``size``."""
        if self.is_patch:
            return View(chosen, crop=patch or PATCH)
        return View(self.extractor or chosen, size)


def statistics_alone(path: str) -> str:
    """What a metric of features says of a side without them."""
    return (
        f"{path} holds a mean and a covariance alone, and this metric needs all features: give the "
        "images, or make it with stepdistill eval reference --keep_features"
    )


def _frechet(name: str) -> Callable[[Compared], tuple[Values, dict[str, Any]]]:
    def values(both: Compared) -> tuple[Values, dict[str, Any]]:
        return {name: frechet_distance(both.a.statistics, both.b.statistics)}, {}

    return values


def _kernel(both: Compared) -> tuple[Values, dict[str, Any]]:
    distance = kernel_distance(*both.kept, seed=both.seed)
    how = asdict(distance)
    return {"kid": how.pop("mean")}, how


def _precision_recall(both: Compared) -> tuple[Values, dict[str, Any]]:
    found = both.neighbours
    return {"precision": found.precision, "recall": found.recall}, {"nearest": found.nearest}


def _density_coverage(both: Compared) -> tuple[Values, dict[str, Any]]:
    found = both.neighbours
    values = {"density": found.density, "coverage": found.coverage}
    return values, {"nearest": found.density_nearest}


def _score_shuffled(both: Compared) -> tuple[Values, dict[str, Any]]:
    count = both.a.statistics.count
    return _inception_score(both, shuffled(count), "shuffled, as torch-fidelity")


def _score_in_order(both: Compared) -> tuple[Values, dict[str, Any]]:
    return _inception_score(both, in_order(both.a.statistics.count), "in order, as ADM")


def _inception_score(both: Compared, split_of: Tensor, order: str) -> tuple[Values, dict[str, Any]]:
    if both.a.features is None:
        raise UserError(statistics_alone(both.a.record["path"]))
    how = asdict(inception_score(_blocks(both.a.features), classes_of(both.features), split_of))
    return {"inception_score": how.pop("mean")}, {**how, "order": order}


def classes_of(features: Features) -> Tensor:
    """What makes logits of them. UserError where there are no classes."""
    if features.logits is None:
        raise UserError(
            f"the {features.name} features have no classes: inception_score takes "
            "--features inception-tf or inception"
        )
    return features.logits


def _blocks(features: Tensor) -> Iterator[Tensor]:
    for begin in range(0, len(features), BLOCK):
        yield features[begin : begin + BLOCK]


def _cmmd(both: Compared) -> tuple[Values, dict[str, Any]]:
    return {"cmmd": cmmd(*both.kept)}, {}


METRICS: dict[str, Metric] = {
    "fid": Metric("Frechet distance on --features", _frechet("fid"), (False, False)),
    "kid": Metric("kernel distance on --features", _kernel),
    "precision_recall": Metric(
        "by third neighbours, on --features",
        _precision_recall,
        least=DENSITY_NEAREST + 1,  # both are of one pass
        gives=("precision", "recall"),
    ),
    "density_coverage": Metric(
        "by fifth neighbours, on --features",
        _density_coverage,
        least=DENSITY_NEAREST + 1,
        gives=("density", "coverage"),
    ),
    "inception_score": Metric(
        "of A alone, on --features",
        _score_shuffled,
        (True, False),
        compares=False,
        least=SPLITS,
        of_classes=True,
    ),
    "fd_dinov2": Metric(
        "Frechet distance on DINOv2", _frechet("fd_dinov2"), (False, False), "dinov2"
    ),
    "cmmd": Metric("discrepancy of CLIP embeddings", _cmmd, extractor="clip-336"),
    "patch_fid": Metric(
        f"Frechet distance of the middle {PATCH}x{PATCH} pixels, on --features",
        _frechet("patch_fid"),
        (False, False),
        is_patch=True,
    ),
}


SCORE_IN_ORDER = replace(METRICS["inception_score"], values=_score_in_order)


def named(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of those names. UserError for another, with the nearest and all there are."""
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"there is no metric {name}.{hint} The metrics are: {_listed()}")
    if not names:
        raise UserError(f"metrics is empty: name some of {_listed()}, with commas between")
    return {name: METRICS[name] for name in names}


def check_extractor(names: Sequence[str], extractor: str) -> None:
    """UserError for a FID on features that no FID is of."""
    if extractor in ("dinov2", "clip-336") and {"fid", "patch_fid"} & set(names):
        raise UserError(
            f"fid is not of {extractor} features: take the metrics fd_dinov2, kid or cmmd"
        )


def _listed() -> str:
    return ", ".join(METRICS)
