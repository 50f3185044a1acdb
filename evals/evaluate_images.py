"""Two sets of images compared by any of the metrics: folders, archives, models, references.

    stepdistill eval images samples/ real/                          # FID
    stepdistill eval images samples.npz VIRTUAL_imagenet256_labeled.npz --features inception-tf \\
        --metrics fid inception_score precision_recall
    stepdistill eval images samples/ val2014/ --size 256 --metrics fid kid --output results.jsonl
    stepdistill eval images samples/ photos/ --patch 299            # FID, and patch FID

A and B each are images (a folder, a .zip, a .tar, an .npz as ADM writes them), a diffusers folder,
``digits``, or statistics (see ``stepdistill eval reference``). Each image is decoded once, in
processes of its own, whatever the number of metrics. An alpha channel is dropped, as clean-fid
does, and the images that have one are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.evaluation.measures.image_metrics import METRICS, named
from stepdistill.evaluation.options import check_least, names_of, sampling_of, writable
from stepdistill.evaluation.pairs.comparison import Through, compare, describe
from stepdistill.evaluation.pairs.sources import open_pair
from stepdistill.evaluation.records.written import add_record, write_record

NOTE = "\n".join(["metrics:", *(f"  {name:18} {own.about}" for name, own in METRICS.items())])


@dataclass(frozen=True)
class Options:
    """Compare two sets of images.

    Args:
        a: an image folder or archive, a diffusers folder, "digits", or statistics
        b: the same, what A is compared with
        metrics: one or more, see below
        features: the extractor: inception (clean-fid's resize), inception-tf (TensorFlow's, as EDM
            and ADM), digits, scenes, or dinov2 and clip-336 for what is no fid; default: digits
            where either side is "digits" or a model of 8x8 grey images, else inception
        size: cut both sides to their centre square and resize it to so many pixels first
        patch: measure patch_fid too, on so many pixels in the middle, not resized
        num: samples of a model, or images drawn at random from A; default: 50000, or all
        seed: of a model's first sample, of the draw from A, and of KID's subsets
        steps: of a model's sampler; default: its trained number
        batch_size: images at a time (default: what suits the extractors)
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        workers: processes that decode images (default: one for each core)
        output: a .json file for the record, or any other to which it is added as a line
        weights: of --features, FILE or NAME=FILE; default: where its environment variable says, or
            as it is found
        device: default: cuda if there is one
    """

    a: str
    b: str
    metrics: tuple[str, ...] = ("fid",)
    features: str | None = None
    size: int | None = None
    patch: int | None = None
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
    """Measure, print, and write the record."""
    settings = parse("stepdistill eval images", (Options,), {}, arguments, None, True, NOTE)
    options = settings.get(Options)
    names = list(names_of(options.metrics))
    if options.patch is not None and "patch_fid" not in names:
        names.append("patch_fid")
    named(names)
    check_least(options, {"size": 1, "patch": 1})
    output = None if options.output is None else writable(Path(options.output))
    how = sampling_of(options)
    pair = open_pair(options.a, options.b, how)
    through = Through(options.features, options.weights, options.size, options.patch, how.device)
    record = compare(pair, names, through, options.seed)
    print(describe(record))
    if output is not None:
        write = write_record if output.suffix == ".json" else add_record
        write({**record, "device": how.device}, output)


if __name__ == "__main__":
    guarded(main)
