"""Encode prompts or images once for any number of trainings, or sample noise-image pairs.

stepdistill precompute MODEL --prompts prompts.txt --output encoded
stepdistill precompute MODEL --data images/ --buckets true --output latents
stepdistill precompute MODEL --pairs 10000 --prompts prompts.txt --guidance_scale 6 --output pairs
stepdistill train dmd2 --teacher MODEL --data encoded --output runs/mine --method.gan_weight 0

A killed run goes on with the same command, and the folder is then the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.precomputing import PrecomputeOptions, precompute_folder
from stepdistill.teachers import LoadOptions


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder and say what it holds."""
    flat, nested = (PrecomputeOptions,), {"load": LoadOptions}
    settings = parse("stepdistill precompute", flat, nested, arguments, positional=True)
    data = precompute_folder(settings.get(PrecomputeOptions), settings.get(LoadOptions))
    print(data.describe())


if __name__ == "__main__":
    guarded(main)
