"""What the built-in worlds are measured by beside a distance: accuracy and diversity.

The same figures as ``metrics.quality.measure`` and ``metrics.caption_quality.measure_captioned``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.captioned_digits import evaluation_prompts
from ...data.digits import NUM_CLASSES, digits, digits_sha256
from ...data.scenes import agree
from ...metrics.caption_quality import CAPTION_REFERENCE, caption_reference
from ...metrics.diversity import pairwise_distance
from ...metrics.features import digest
from ...metrics.quality import digits_reference, floor
from ..reading.measuring import Measured, Want
from .measure import Evidence, Measure, Values
from .views import View

NEAR = 2_000  # samples that a diversity is taken over


class DigitAccuracy(Measure):
    """The share of samples, in percent, that the classifier takes for what they were told."""

    def values(self, evidence: Evidence) -> Values:
        """In percent."""
        head = digits_reference()[0].head
        predicted = torch.cat([head(block).argmax(1) for block in evidence.blocks(self.seen)])
        right = predicted == torch.tensor(evidence.told())
        return {self.name: 100 * float(right.double().mean())}

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Of a share: (p (1 - p) / N)^(1/2)."""
        return _of_share(self.values(evidence), evidence.num)


class DigitDiversity(Measure):
    """The mean distance of two samples of one class over that of the real images."""

    def values(self, evidence: Evidence) -> Values:
        """1 is as diverse as the real images."""
        near = _first(evidence, self.seen, NEAR)
        labels = torch.tensor(evidence.told()[: len(near)])
        spread = pairwise_distance(near, [labels == k for k in range(NUM_CLASSES)])
        return {self.name: float((spread / digits_reference()[1].spread).nanmean())}


class DigitFloor(Measure):
    """The distance of as many real images, drawn with replacement."""

    def values(self, evidence: Evidence) -> Values:
        """What a perfect model scores."""
        return {self.name: floor(evidence.num)}


class CaptionAccuracy(Measure):
    """The share of samples, in percent, that show everything their prompt says."""

    def values(self, evidence: Evidence) -> Values:
        """In percent."""
        classifier = caption_reference()[0]
        said = {prompt.text: prompt.said.labels for prompt in evaluation_prompts()}
        told = torch.stack([said[text] for text in evidence.told()])
        shown = [classifier.labels(block) for block in evidence.blocks(self.seen)]
        return {self.name: 100 * float(agree(torch.cat(shown), told).double().mean())}

    def errors(self, evidence: Evidence, replicates: int) -> Values:
        """Of a share."""
        return _of_share(self.values(evidence), evidence.num)


class CaptionDiversity(Measure):
    """The mean distance of two samples of one prompt over that of real pictures of it."""

    def values(self, evidence: Evidence) -> Values:
        """1 is as diverse; nothing is told of fewer than two samples a prompt."""
        near, prompts = _first(evidence, self.seen, NEAR), len(evaluation_prompts())
        if len(near) < 2 * prompts:
            return {}
        spread = pairwise_distance(near, [slice(i, None, prompts) for i in range(prompts)])
        return {self.name: float((spread / caption_reference()[1].spread).nanmean())}


class DigitsReference:
    """All 1,797 real images on their classifier."""

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """The same whatever is wanted: the protocol has one view."""
        reference, count = digits_reference()[1], len(digits()[0])
        record = {"path": "digits (built in)", "num_samples": count, "sha256": digits_sha256()}
        return [Measured(reference.statistics, record, reference.features) for _ in wants]


class CaptionsReference:
    """50,000 real pictures of the evaluation prompts, as the statistics that come along."""

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Their Gaussian."""
        statistics, hashed = caption_reference()[1].statistics, digest(CAPTION_REFERENCE)
        path = "captioned digits (built in)"
        record = {"path": path, "num_samples": statistics.count, "sha256": hashed}
        return [Measured(statistics, record) for _ in wants]


def _first(evidence: Evidence, view: View, count: int) -> Tensor:
    """The features of the first ``count`` samples."""
    kept: list[Tensor] = []
    for block in evidence.blocks(view):
        kept.append(block)
        if sum(map(len, kept)) >= count:
            break
    return torch.cat(kept)[:count]


def _of_share(values: Values, num: int) -> Values:
    """Standard errors of shares in percent: 100 (p (1 - p) / N)^(1/2)."""
    shares = {name: value / 100 for name, value in values.items()}
    return {name: 100 * (p * (1 - p) / num) ** 0.5 for name, p in shares.items()}
