"""Whether features of image files are bounded by the network: its own images a second, and ours.

    python -m stepdistill.evals.decode_record --output evals/records/decoding.json

Random pieces of scikit-learn's two photographs are written as PNG files. In each round a small
convolutional network on one thread is timed on tensors in memory, and then the whole path is: the
files decoded, prepared and stacked in processes of their own, the same network, the moments. Of
both the wall clock and the processor's time are recorded. On a machine that others load the clock
says how much of it was left to us, the more so as the whole path has more processes to share it
with; the processor's time of the one that holds the network does not: beside the network's own it
is what a network pays for reading, wherever the readers have cores. What they need is recorded too:
a GPU that makes n times as many features as one reader makes inputs needs n cores to read for it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.evaluation.reading.archives import in_folder
from stepdistill.evaluation.reading.blocks import cores, read
from stepdistill.evaluation.reading.measuring import Reading, Want, measure_images
from stepdistill.evaluation.records.provenance import commit, versions
from stepdistill.metrics.extractors.inception import clean
from stepdistill.metrics.features import Features, Pixels

BATCH = 64
HELD = 256  # prepared images that the network alone is timed on, again and again


@dataclass(frozen=True)
class Options:
    """Time reading against a network.

    Args:
        output: the .json file
        rounds: of which medians are taken
        workers: processes that decode (default: one for each core, two at least)
    """

    output: str
    rounds: int = 5
    workers: int | None = None


@dataclass(frozen=True)
class Case:
    """Files of one size, how they are prepared, and the width of the network behind."""

    size: int
    count: int
    width: int
    prepare: Callable[[Pixels], Tensor]
    words: str


def plain(pixels: Pixels) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


CASES = (
    Case(64, 5_000, 32, plain, "none"),
    Case(256, 1_000, 16, clean, "to 299x299, clean-fid's"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time each case, and write the record."""
    options = parse("decode_record", (Options,), {}, arguments).get(Options)
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "cores": cores(),
        "workers": options.workers or max(2, cores()),
        "load_before": os.getloadavg(),
        "cases": [],
    }
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            write_pieces(Path(place), case.count, case.size)
            found = time_case(case, Path(place), options)
        print(json.dumps(found, indent=1))
        record["cases"].append(found)
    record |= {"load_after": os.getloadavg(), "versions": versions(), "commit": commit()}
    Path(options.output).write_text(json.dumps(record, indent=1) + "\n")


def write_pieces(folder: Path, count: int, size: int) -> None:
    """``count`` squares of the photographs, at random places, as PNG files."""
    draw = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (draw.integers(0, side - size) for side in photograph.shape[:2])
        piece = photograph[top : top + size, left : left + size]
        Image.fromarray(piece).save(folder / f"{i:06d}.png")


def network(width: int) -> nn.Module:
    """Three strided convolutions and three more, to 4 ``width`` features."""
    layers: list[nn.Module] = []
    inward = 3
    for outward in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(inward, outward, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(outward, outward, 3, padding=1), nn.ReLU()]
        inward = outward
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@dataclass(frozen=True)
class Spent:
    """Milliseconds an image: of the clock, of this process and of those that read for it."""

    clock: float
    own: float
    readers: float


def mean(a: Spent, b: Spent) -> Spent:
    """Of what is before and what is after, so that a drift of the machine is in both alike."""
    return Spent((a.clock + b.clock) / 2, (a.own + b.own) / 2, (a.readers + b.readers) / 2)


def spent(call: Callable[[], int]) -> Spent:
    """By what ``call`` does to as many images as it returns."""
    before = _times()
    count = call()
    return Spent(*(1_000 * (b - a) / count for a, b in zip(before, _times(), strict=True)))


def _times() -> tuple[float, float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time(), children.ru_utime + children.ru_stime


def time_case(case: Case, folder: Path, options: Options) -> dict[str, Any]:
    """The network alone and the whole path, by rounds."""
    torch.manual_seed(0)
    body, pictures = network(case.width), in_folder(folder)
    rows = range(len(pictures))

    @torch.no_grad()
    def forward(x: Tensor) -> Tensor:
        output: Tensor = body(x)
        return output

    features = Features("small", 4 * case.width, "", "RGB", case.prepare, forward, BATCH)
    how = Reading(workers=options.workers or max(2, cores()))
    held = [b.inputs[0] for b in read(pictures, rows[:HELD], [features], BATCH, workers=1)]

    def alone() -> int:
        done = 0
        while done < len(pictures) // 2:  # before and after the whole path
            done += len(forward(held[done // BATCH % len(held)]))
        return done

    def whole() -> int:
        return measure_images(pictures, rows, [Want(features)], how)[0].statistics.count

    rounds = []
    for _ in range(options.rounds):
        before, during, after = spent(alone), spent(whole), spent(alone)
        rounds.append((mean(before, after), during))
    medians = {
        name: {
            key: round(statistics.median(getattr(own[side], key) for own in rounds), 4)
            for key in ("clock", "own", "readers")
        }
        for side, name in enumerate(("network", "whole"))
    }
    return {
        "images": f"{len(pictures)} PNG files of {case.size}x{case.size}",
        "prepare": case.words,
        "features": 4 * case.width,
        "parameters": sum(p.numel() for p in body.parameters()),
        "ms_per_image": medians,
        "network_images_per_second": round(1_000 / medians["network"]["own"], 1),
        "reader_images_per_second": round(1_000 / medians["whole"]["readers"], 1),
        "share_by_clock": _shares([a.clock / b.clock for a, b in rounds]),
        "share_by_processor": _shares([a.own / b.own for a, b in rounds]),
    }


def _shares(ratios: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(ratios), 4),
        "best": round(max(ratios), 4),
        "rounds": [round(ratio, 4) for ratio in ratios],
    }


if __name__ == "__main__":
    guarded(main)
