"""The Frechet distance between two sets of images: folders, models, references.

The short form of ``stepdistill eval images``, which has the other metrics.

    stepdistill fid runs/dmd2/student digits               # the built-in world, on its classifier
    python -m stepdistill.evals.fid images/ real/ --weights inception-2015-12-05.pt
    python -m stepdistill.evals.fid student/ reference.npz --num 50000 --output fid.jsonl

A and B each are images (a folder, a .zip, a .tar, an .npz as ADM writes them), a diffusers folder,
``digits`` (the 1,797 real images of the built-in world), or statistics: .safetensors of ours, .npz
of clean-fid, EDM or ADM, .pkl of EDM2. A diffusers folder is sampled by its stock pipeline; but a
pixel teacher of ours (a ``ConsistencyModelPipeline``) by Heun's method with its EDM times, 2 n - 1
network calls in n steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.evaluation.options import sampling_of, writable
from stepdistill.evaluation.pairs.comparison import Through, compare
from stepdistill.evaluation.pairs.short import describe, short
from stepdistill.evaluation.pairs.sources import open_pair
from stepdistill.evaluation.records.written import add_record


@dataclass(frozen=True)
class Options:
    """Frechet distance of A to B.

    Args:
        a: an image folder or archive, a diffusers folder, "digits", or statistics
        b: the same, what A is compared with
        features: "digits" (the built-in classifier), "inception" (clean-fid's resize) or
            "inception-tf" (TensorFlow's, as EDM and ADM); default: digits where either side is
            "digits" or a model of 8x8 grey images, else inception
        num: samples of a model (default 50000; fewer raise the distance), or images drawn at random
            from a folder A (default all); a folder B is always used whole
        seed: of a model's first sample, sample i has seed + i; and of the draw from a folder A
        steps: of a model's sampler; default: a student's trained number, its family's or pipeline's
            own of another model
        batch_size: images at a time, by default 500 on the digits and 64 on Inception; the value
            does not depend on it, but for rounding
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        workers: processes that decode images (default: one for each core)
        output: a file to which the result is added, one line of JSON
        weights: the file of Inception weights, FILE or inception=FILE; default:
            $STEPDISTILL_INCEPTION, or clean-fid's copy
        device: default: cuda if there is one
    """

    a: str
    b: str
    features: Literal["digits", "inception", "inception-tf"] | None = None
    num: int | None = None
    seed: int = 0
    steps: int | None = None
    batch_size: int | None = None
    skip_corrupt: bool = False
    workers: int | None = None
    output: str | None = None
    weights: str | None = None
    device: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and add the record to ``output``."""
    options = parse("stepdistill fid", (Options,), {}, arguments, positional=True).get(Options)
    output = None if options.output is None else writable(Path(options.output))
    how = sampling_of(options)
    pair = open_pair(options.a, options.b, how)
    through = Through(options.features, options.weights, device=how.device)
    record = short(compare(pair, ["fid"], through, options.seed))
    print(describe(record))
    if output is not None:
        add_record({**record, "device": how.device}, output)


if __name__ == "__main__":
    guarded(main)
