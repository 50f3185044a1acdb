"""The record of what a Frechet distance takes: seconds and memory, beside SciPy's matrix root.

    python -m stepdistill.evals.distance_record --output evals/records/distance.json

Features of the published size are made in blocks and streamed, each count in a process of its own,
so that its peak of memory is its own. Every time is given as all its repeats on the clock, their
median, and the least of the processor's time (of all threads): on a machine that others load, the
clock tells of them too, and ``load`` says how many were at work.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.metrics.frechet import Moments, Statistics, frechet_distance

BATCH = 1_000  # rows made, and added, at a time
REFERENCE = 10_000  # samples of the other side
PACKAGES = ("stepdistill", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Options:
    """Measure time and memory of a Frechet distance.

    Args:
        output: the JSON file to write
        counts: samples of each measurement
        size: features a sample
        threads: of the processor
        repeats: of a distance
        scipy: measure SciPy's root of the same covariances once, which takes minutes
    """

    output: str
    counts: list[int] = field(default_factory=lambda: [50_000, 200_000])
    size: int = 2_048
    threads: int = 2
    repeats: int = 5
    scipy: bool = True


def feature_blocks(count: int, size: int, seed: int, scale: float = 1.0) -> Iterator[Tensor]:
    """``count`` rows of positive, correlated features of unequal variance, float32, in blocks."""
    mix = torch.randn(64, size, generator=torch.Generator().manual_seed(0)) / 8
    spread = torch.linspace(0.05, 1, size)
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, count, BATCH):
        rows = min(BATCH, count - begin)
        z = torch.randn(rows, size, generator=generator) * spread
        yield scale * (z + torch.randn(rows, 64, generator=generator) @ mix).relu_()


def streamed(blocks: Iterator[Tensor]) -> tuple[Statistics, float, float]:
    """The Gaussian of the blocks, and the seconds that adding and finishing them took: on the
    clock and of the processor."""
    moments, clock, processor = Moments(), 0.0, 0.0
    for rows in blocks:
        _, own, others = timed(lambda rows=rows: moments.add(rows))
        clock, processor = clock + own, processor + others
    fitted, own, others = timed(lambda: Statistics.of(moments))
    return fitted, clock + own, processor + others


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the call returns, its seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    returned = call()
    return returned, time.perf_counter() - clock, time.process_time() - processor


def repeated(call: Callable[[], float], repeats: int) -> tuple[float, dict[str, Any]]:
    """Its value, and its times; a first call does not count."""
    value = call()
    runs = [timed(call)[1:] for _ in range(repeats)]
    clock = [own for own, _ in runs]
    return value, {
        "median": statistics.median(clock),
        "all": clock,
        "least_processor": min(processor for _, processor in runs),
    }


def peak_bytes() -> int:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1_024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(count: int, options: Options, scipy: bool) -> dict[str, Any]:
    """One count: moments, distance, and the distance to fewer samples than features."""
    torch.set_num_threads(options.threads)
    before, size = peak_bytes(), options.size
    own, clock, processor = streamed(feature_blocks(count, size, seed=1))
    other = streamed(feature_blocks(REFERENCE, size, seed=2, scale=1.1))[0]
    value, seconds = repeated(lambda: frechet_distance(own, other), options.repeats)
    few = streamed(feature_blocks(size // 2, size, seed=3))[0]
    deficient = repeated(lambda: frechet_distance(few, other), options.repeats)[1]
    peak = peak_bytes()
    record = {
        "count": count,
        "distance": value,
        "distance_seconds": seconds,
        "rank_deficient_distance_seconds": deficient,
        "moments_seconds": {"clock": clock, "processor": processor},
        "peak_bytes": peak,
        "imports_bytes": before,
        "beyond_imports_bytes": peak - before,
    }
    if scipy:
        record["scipy"] = scipy_root(own, other, value)
        record["scipy"]["times_ours"] = record["scipy"]["seconds"] / seconds["median"]
    return record


def scipy_root(a: Statistics, b: Statistics, ours: float) -> dict[str, Any]:
    """SciPy's square root of S_a S_b, timed once, and how far its distance is from ours."""
    from scipy.linalg import sqrtm

    product = (a.covariance @ b.covariance).numpy()
    root, clock, processor = timed(lambda: sqrtm(product))
    traces = a.covariance.trace() + b.covariance.trace()
    value = float((a.mean - b.mean).square().sum() + traces) - 2 * root.trace().real
    difference = abs(value - ours) / ours
    return {"seconds": clock, "processor": processor, "relative_difference": difference}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each count in a fresh process, and write ``output``."""
    program = "stepdistill.evals.distance_record"
    options = parse(program, (Options,), {}, arguments).get(Options)
    if options.repeats < 1 or options.threads < 1 or min(options.counts, default=0) < 2:
        raise UserError("repeats and threads must be at least 1, and counts at least 2 each")
    if options.size < 4:
        raise UserError("size must be at least 4 features")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # numpy's, which the new processes read
    load = os.getloadavg()
    record: dict[str, Any] = {
        "metric": "distance_cost",
        "size": options.size,
        "threads": options.threads,
        "sets": [],
    }
    spawn = multiprocessing.get_context("spawn")
    for i, count in enumerate(options.counts):
        with spawn.Pool(1) as pool:
            job = (count, options, options.scipy and i == 0)
            record["sets"].append(pool.apply(measure, job))
    record["load"] = {"before": load, "after": os.getloadavg()}
    record["device"] = f"{platform.machine()}, {os.cpu_count()} cores"
    record["versions"] = {name: version(name) for name in PACKAGES}
    text = json.dumps(record, indent=1)
    print(text)
    Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    guarded(main)
