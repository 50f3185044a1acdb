"""Measure a built-in text-to-image teacher over guidance, then its best setting well.

    python -m stepdistill.evals.caption_record --teacher stepdistill/worlds/digits-t2i/teacher

writes ``record.json`` beside the weights: the grid, the lowest distance and the highest accuracy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepdistill.captioned_world import teacher_sampler
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.metrics.caption_quality import caption_floor, measure_captioned
from stepdistill.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class Options:
    """Measure a text-to-image teacher of the captioned digits, and record its quality."""

    teacher: str
    steps: int = 20  # of the teacher's own scheduler
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
    grid_samples: int = 5_000  # of each guidance
    num_samples: int = 0  # of the guidance of the lowest distance; 0: those of the grid
    seed: int = 0


def measured(teacher: Teacher, options: Options, scale: float, count: int) -> dict[str, Any]:
    """A row of the record: one guidance scale at ``count`` samples."""
    began = time.perf_counter()
    quality = measure_captioned(teacher_sampler(teacher, options.steps, scale), count, options.seed)
    calls = options.steps if scale == 1 else 2 * options.steps
    seconds = time.perf_counter() - began
    row = {"steps": options.steps, "guidance_scale": scale, "nfe": calls}
    return {**row, **quality.record(), "seconds": seconds}


def record(options: Options) -> dict[str, Any]:
    """The grid, the setting of the lowest distance, and the most accurate one."""
    teacher = load_teacher(options.teacher)
    rows = []
    for scale in options.guidance:
        rows.append(measured(teacher, options, scale, options.grid_samples))
        print(json.dumps(rows[-1]), flush=True)
    best = min(rows, key=lambda row: row["fid"])
    if options.num_samples:
        best = measured(teacher, options, best["guidance_scale"], options.num_samples)
    return {
        **best,
        "sampler": type(teacher.pipeline.scheduler).__name__,
        "fid_floor": caption_floor(best["num_samples"]).fid,
        "grid_floor": caption_floor(options.grid_samples).fid,
        "most_accurate": max(rows, key=lambda row: row["caption_accuracy"]),
        "grid": rows,
        "parameters": sum(p.numel() for p in teacher.denoiser.parameters()),
        "versions": {"torch": torch.__version__},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write TEACHER/record.json."""
    options = parse("stepdistill.evals.caption_record", (Options,), {}, arguments).get(Options)
    path = Path(options.teacher) / "record.json"
    path.write_text(json.dumps(record(options), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    guarded(main)
