"""How good captioned samples are: Frechet distance, caption accuracy, diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.captioned_digits import Caption, evaluation_prompts, real_pictures
from ..data.scenes import agree
from ..errors import UserError
from ..teachers import WORLDS
from .diversity import pairwise_distance
from .extractors.scenes import SceneClassifier, load_scene_classifier
from .features import quantised
from .frechet import Moments, Statistics, frechet_distance
from .quality import batches

CAPTION_REFERENCE = WORLDS / "digits-t2i" / "reference" / "statistics.safetensors"
NEAR = 2_000  # samples that the diversity is taken over
# (prompts, image seeds) -> x0 (B, 3, 32, 32)
CaptionSampler = Callable[[Sequence[Caption], range], Tensor]


@dataclass(frozen=True)
class CaptionQuality:
    """``fid`` is the Frechet distance on the scene classifier's features, to 50,000 real pictures
    of the evaluation prompts.

    ``caption_accuracy``, in percent, counts the samples that show everything their prompt says;
    ``diversity`` is the mean distance of two samples of one prompt in feature space, over that of
    real pictures (1 is as diverse).
    """

    fid: float
    caption_accuracy: float
    diversity: float
    num_samples: int
    seed: int

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class CaptionReference:
    """Real pictures of the evaluation prompts on the classifier's features."""

    statistics: Statistics
    spread: Tensor  # mean distance of two pictures of each prompt (P,)

    @classmethod
    def of(cls, features: Tensor) -> CaptionReference:
        """From features (N, 64), row i of prompt i mod P; UserError for fewer than 2 P rows."""
        least = 2 * len(evaluation_prompts())
        if len(features) < least:
            raise UserError(f"a reference needs at least {least:,} pictures, got {len(features):,}")
        moments = Moments()
        moments.add(features)
        return cls(Statistics.of(moments), _spread(features))

    def save(self, path: Path) -> None:
        """Write as safetensors, which ``Statistics.load`` and ``stepdistill fid`` read too."""
        self.statistics.save(path)
        save_file({**load_file(path), "spread": self.spread}, path)

    @classmethod
    def load(cls, path: Path) -> CaptionReference:
        """Read what :meth:`save` wrote."""
        return cls(Statistics.load(path), load_file(path)["spread"])


@cache
def caption_reference() -> tuple[SceneClassifier, CaptionReference]:
    """The bundled classifier and the reference measured with it."""
    return load_scene_classifier(), CaptionReference.load(CAPTION_REFERENCE)


def measure_captioned(sampler: CaptionSampler, num_samples: int, seed: int = 0) -> CaptionQuality:
    """Quality of ``num_samples`` pictures; picture i has the seed ``seed`` + i and evaluation
    prompt i mod 500, so every prompt is sampled equally often."""
    classifier, reference = caption_reference()
    prompts = evaluation_prompts()
    said = torch.stack([prompt.said.labels for prompt in prompts])
    moments, correct = Moments(), 0
    kept: list[Tensor] = []
    for rows in batches(num_samples):
        own = [i % len(prompts) for i in rows]
        seeds = range(seed + rows.start, seed + rows.stop)
        x0 = quantised(sampler([prompts[i] for i in own], seeds).cpu().float())
        features = classifier.features(x0)
        moments.add(features)
        correct += int(agree(classifier.labels(features), said[own]).sum())
        if rows.stop <= NEAR:
            kept.append(features)
    ratios = _spread(torch.cat(kept)) / reference.spread
    return CaptionQuality(
        fid=frechet_distance(Statistics.of(moments), reference.statistics),
        caption_accuracy=100 * correct / num_samples,
        diversity=float(ratios.nanmean()),
        num_samples=num_samples,
        seed=seed,
    )


@cache
def caption_floor(num_samples: int, seed: int = 0) -> CaptionQuality:
    """What a perfect model scores at this count: fresh real pictures, measured as samples are."""
    return measure_captioned(real_pictures, num_samples, seed)


def _spread(features: Tensor) -> Tensor:
    """Mean Euclidean distance of two rows of one prompt, (P,); NaN for a prompt of one row."""
    count = len(evaluation_prompts())
    return pairwise_distance(features, [slice(i, None, count) for i in range(count)])
