"""How good samples of the built-in digits are: Frechet distance, accuracy, diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..data.digits import NUM_CLASSES, digits, stratified_labels
from .diversity import pairwise_distance
from .extractors.digits import DigitClassifier, load_digit_classifier
from .features import quantised
from .frechet import Moments, Statistics, frechet_distance

BATCH = 500  # images sampled at a time
# (class labels (B,), image seeds) -> x0
Sampler = Callable[[Tensor, range], Tensor]


@dataclass(frozen=True)
class Quality:
    """``fid`` is the Frechet distance on the digit classifier's features, to all 1,797 images.

    ``class_accuracy`` in percent; ``diversity`` is the mean distance of two samples of one class in
    feature space, over that of the real images (1 is as diverse).
    """

    fid: float
    class_accuracy: float
    diversity: float
    num_samples: int
    seed: int

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """The real images on the classifier's features."""

    statistics: Statistics
    features: Tensor
    labels: Tensor
    spread: Tensor  # mean pairwise distance within each class (K,)

    @property
    def proportions(self) -> Tensor:
        """Images a class (K,)."""
        return torch.bincount(self.labels, minlength=NUM_CLASSES)


@cache
def digits_reference() -> tuple[DigitClassifier, Reference]:
    """The bundled classifier, and the reference it gives; computed once a process."""
    classifier = load_digit_classifier()
    x0, labels = digits()
    features = classifier.features(quantised(x0))
    moments = Moments()
    moments.add(features)
    spread = pairwise_distance(features, [labels == k for k in range(NUM_CLASSES)])
    return classifier, Reference(Statistics.of(moments), features, labels, spread)


def measure(sampler: Sampler, num_samples: int, seed: int = 0) -> Quality:
    """Quality of ``num_samples`` images of stratified labels, seeds from ``seed`` on."""
    classifier, reference = digits_reference()
    labels = stratified_labels(reference.proportions, num_samples)
    moments, correct = Moments(), 0
    kept: list[Tensor] = []
    for rows in batches(num_samples):
        x0 = quantised(sampler(labels[rows.start : rows.stop], _shifted(rows, seed)).cpu())
        features = classifier.features(x0)
        moments.add(features)
        predicted = classifier.head(features).argmax(1)
        correct += int((predicted == labels[rows.start : rows.stop]).sum())
        if rows.stop <= 2_000 or not kept:
            kept.append(features)
    near = torch.cat(kept)
    near_labels = labels[: len(near)]
    spread = pairwise_distance(near, [near_labels == k for k in range(NUM_CLASSES)])
    return Quality(
        fid=frechet_distance(Statistics.of(moments), reference.statistics),
        class_accuracy=100 * correct / num_samples,
        diversity=float((spread / reference.spread).nanmean()),
        num_samples=num_samples,
        seed=seed,
    )


def floor(num_samples: int, seed: int = 0) -> float:
    """The distance of the reference itself, resampled with replacement within its classes.

    What a perfect model scores at this count, since a finite sample inflates the distance.
    """
    _, reference = digits_reference()
    labels = stratified_labels(reference.proportions, num_samples)
    generator = torch.Generator().manual_seed(seed)
    moments = Moments()
    picked = torch.empty(num_samples, dtype=torch.long)
    for k in range(NUM_CLASSES):
        own = (reference.labels == k).nonzero()[:, 0]
        places = (labels == k).nonzero()[:, 0]
        picked[places] = own[torch.randint(len(own), (len(places),), generator=generator)]
    moments.add(reference.features[picked])
    return frechet_distance(Statistics.of(moments), reference.statistics)


def batches(num_samples: int) -> Iterator[range]:
    """Index ranges of at most BATCH images."""
    for begin in range(0, num_samples, BATCH):
        yield range(begin, min(begin + BATCH, num_samples))


def _shifted(rows: range, seed: int) -> range:
    return range(seed + rows.start, seed + rows.stop)
