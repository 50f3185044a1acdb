"""Measure a built-in digits teacher: search its best sampler setting, then measure that well.

    python -m stepdistill.evals.teacher_record --teacher stepdistill/worlds/digits/teacher

writes ``record.json`` beside the weights: the grid, the best setting, and its figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.metrics.quality import Sampler, floor, measure
from stepdistill.sampling import NoiseStreams, sample_teacher
from stepdistill.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class Options:
    """Search a digits teacher's best sampler setting and record its quality."""

    teacher: str
    steps: tuple[int, ...] = (9, 18, 40)  # Heun steps; 2 n - 1 calls
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0)
    grid_samples: int = 5_000  # of each setting
    num_samples: int = 50_000  # of the best one
    seed: int = 0


def sampler_of(teacher: Teacher, steps: int, guidance_scale: float) -> Sampler:
    """Class labels and image seeds -> x0 of the teacher."""

    def sampler(labels: Tensor, seeds: range) -> Tensor:
        cond = teacher.encode(labels.tolist())
        z = NoiseStreams(seeds).normal(teacher.sample_shape)
        return sample_teacher(teacher, cond, z, steps, guidance_scale)

    return sampler


def record(options: Options) -> dict[str, Any]:
    """The grid and the best setting's figures."""
    teacher = load_teacher(options.teacher)
    rows = []
    for steps in options.steps:
        for scale in options.guidance:
            quality = measure(sampler_of(teacher, steps, scale), options.grid_samples, options.seed)
            row = {"steps": steps, "guidance_scale": scale, "nfe": 2 * steps - 1}
            rows.append({**row, **quality.record()})
            print(json.dumps(rows[-1]), flush=True)
    best = min(rows, key=lambda row: row["fid"])
    steps, scale = best["steps"], best["guidance_scale"]
    began = time.perf_counter()
    quality = measure(sampler_of(teacher, steps, scale), options.num_samples, options.seed)
    return {
        "nfe": 2 * steps - 1,
        "sampler": "heun",
        "steps": steps,
        "guidance_scale": scale,
        **quality.record(),
        "fid_floor": floor(options.num_samples),
        "grid_floor": floor(options.grid_samples),
        "grid": rows,
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in teacher.denoiser.parameters()),
        "versions": {"torch": torch.__version__},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write TEACHER/record.json."""
    options = parse("stepdistill.evals.teacher_record", (Options,), {}, arguments).get(Options)
    path = Path(options.teacher) / "record.json"
    path.write_text(json.dumps(record(options), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    guarded(main)
