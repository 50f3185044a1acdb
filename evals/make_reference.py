"""A reference: the statistics of real images on an extractor, for ``eval``'s --reference.

    stepdistill eval reference --data val2014/ --size 256 --output coco.safetensors
    stepdistill eval reference --data imagenet.zip --features inception-tf --output ref.safetensors
    stepdistill eval reference --data real/ --features dinov2 --keep_features --output d.safetensors

The file says of which extractor, which weights and which preprocessing it is, and is refused to any
other. FID needs no more than the statistics; KID, precision and recall, density and coverage and
CMMD need --keep_features (4 bytes a number: 410 MB for 50,000 images on Inception).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.evaluation.measures.views import View
from stepdistill.evaluation.measures.weights import weights_for
from stepdistill.evaluation.options import check_least, device_of, writable
from stepdistill.evaluation.reading.archives import open_pictures
from stepdistill.evaluation.reading.measuring import Reading, Want, measure_images
from stepdistill.evaluation.references.stored import save_reference
from stepdistill.files import check_room


@dataclass(frozen=True)
class Options:
    """Make a reference of images.

    Args:
        data: a folder, a .zip, a .tar, or an .npz with the images in arr_0
        output: the .safetensors file
        features: the extractor: inception, inception-tf, dinov2, clip-336, digits or scenes
        size: cut to the centre square and resize it to so many pixels first
        patch: take so many pixels in the middle instead, not resized
        keep_features: write all features too, and not their statistics alone
        batch_size: images at a time (default: what suits the extractor)
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        workers: processes that decode images (default: one for each core)
        weights: FILE or NAME=FILE; default: where the extractor's environment variable says, or
            as it is found
        device: default: cuda if there is one
    """

    data: str
    output: str
    features: str = "inception"
    size: int | None = None
    patch: int | None = None
    keep_features: bool = False
    batch_size: int | None = None
    skip_corrupt: bool = False
    workers: int | None = None
    weights: str | None = None
    device: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print what was written."""
    options = parse("stepdistill eval reference", (Options,), {}, arguments).get(Options)
    check_least(options, {"size": 1, "patch": 1, "batch_size": 1, "workers": 1})
    if options.size is not None and options.patch is not None:
        raise UserError("a patch is of images as they are: give size or patch, not both")
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise UserError(f"output must be a .safetensors file, got {output}")
    writable(output)
    pictures = open_pictures(Path(options.data))
    if pictures is None:
        raise UserError(
            f"there are no images at {options.data}: give a folder, .zip, .tar or .npz of them"
        )
    view = View(options.features, options.size, options.patch)
    weights = weights_for(options.features, options.weights)
    features = view.open(weights, device_of(options.device))
    if options.keep_features:
        check_room(output.parent, 4 * len(pictures) * features.size, "the features")
    how = Reading(options.batch_size, options.skip_corrupt, options.workers)
    want = Want(features, options.keep_features)
    measured = measure_images(pictures, range(len(pictures)), [want], how)[0]
    save_reference(output, measured, features, measured.record)
    for note in measured.notes:
        print(f"note: {note}", file=sys.stderr)
    kept = ", with all features" if options.keep_features else ""
    print(f"{output}: {measured.statistics.count:,} images on {view.key}{kept}")


if __name__ == "__main__":
    guarded(main)
