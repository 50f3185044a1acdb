"""Make the reference that captioned samples are measured against: real pictures, as statistics.

    python -m stepdistill.evals.caption_reference --output stepdistill/worlds/digits-t2i/reference

writes ``statistics.safetensors``, and ``record.json`` with what real pictures themselves score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.captioned_digits import evaluation_prompts, real_pictures
from stepdistill.metrics.caption_quality import CaptionReference, caption_floor
from stepdistill.metrics.extractors.scenes import SCENE_CLASSIFIER, load_scene_classifier
from stepdistill.metrics.features import digest, quantised
from stepdistill.metrics.quality import batches


@dataclass(frozen=True)
class Options:
    """Render real pictures of the evaluation prompts and store their statistics."""

    output: str  # the folder
    num_samples: int = 50_000
    floors: tuple[int, ...] = (2_000, 5_000, 50_000)  # counts to record the floor at


def build(num_samples: int) -> CaptionReference:
    """The reference of ``num_samples`` pictures, with the seeds before 0."""
    classifier, prompts = load_scene_classifier(), evaluation_prompts()
    features = []
    for rows in batches(num_samples):
        own = [prompts[i % len(prompts)] for i in rows]
        x0 = real_pictures(own, range(rows.start - num_samples, rows.stop - num_samples))
        features.append(classifier.features(quantised(x0)))
    return CaptionReference.of(torch.cat(features))


def record(options: Options) -> dict[str, Any]:
    """What fresh real pictures score at each count, and what was measured with."""
    return {
        "num_samples": options.num_samples,
        "classifier_sha256": digest(SCENE_CLASSIFIER),
        "floors": [asdict(caption_floor(count)) for count in options.floors],
        "prompts": [prompt.text for prompt in evaluation_prompts()],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the statistics, then measure against them."""
    options = parse("stepdistill.evals.caption_reference", (Options,), {}, arguments).get(Options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    build(options.num_samples).save(folder / "statistics.safetensors")
    (folder / "record.json").write_text(json.dumps(record(options), indent=1) + "\n")
    print(folder)


if __name__ == "__main__":
    guarded(main)
