"""Distil the built-in digits teacher, measure the student beside it, and show both on a page.

stepdistill quickstart --output runs/quickstart          # one step, minutes on two cores
stepdistill quickstart --long --output runs/long         # one and four steps, within an hour
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import as_arguments, parse
from stepdistill.distil import distil
from stepdistill.metrics.latency import ms_per_image
from stepdistill.metrics.quality import floor, measure
from stepdistill.presets import digits
from stepdistill.report import write_report
from stepdistill.sampling import sample_teacher
from stepdistill.students import Student, load_student
from stepdistill.teachers import WORLDS, load_teacher

BATCH = 128  # of the latency measurement

Call = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Distil the built-in digits teacher into one step, and measure what was lost.

    Args:
        output: the run folder; results.json, report.html and student/ lie in it
        seed: of training
        long: the longer training, which also makes a four-step student in OUTPUT/four_steps
        num_samples: images the recorded figures are measured on
        max_steps: iterations of each training, for a shorter look; default: the preset's
    """

    output: str = "runs/quickstart"
    seed: int = 0
    long: bool = False
    num_samples: int = 50_000
    max_steps: int | None = None


def train(output: Path, steps: int, seed: int, preset: dict[str, Any]) -> bool:
    """One ``train dmd2`` run with ``preset``; False if it was interrupted."""
    values = {"teacher": "digits", "output": str(output), "steps": steps, "seed": seed, **preset}
    return not distil("dmd2", as_arguments(values)).interrupted


def measure_student(student: Student, steps: int, num_samples: int) -> dict[str, Any]:
    """Quality of the exported pipeline."""

    def sampler(labels: Tensor, seeds: range) -> Tensor:
        return student.sample(labels.tolist(), seeds, steps, batch_size=len(seeds))

    return {"nfe": steps, **measure(sampler, num_samples).record()}


def student_call(student: Student, steps: int) -> Call:
    """A whole call of the exported pipeline."""
    return lambda: student.pipeline(
        batch_size=BATCH,
        class_labels=torch.arange(BATCH) % 10,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )


def teacher_record() -> dict[str, Any]:
    """Quality of the teacher's best setting, as bundled with it."""
    record = json.loads((WORLDS / "digits" / "teacher" / "record.json").read_text())
    kept = ("nfe", "sampler", "steps", "guidance_scale", "fid", "class_accuracy", "diversity")
    return {key: record[key] for key in (*kept, "num_samples", "seed")}


def teacher_call(record: dict[str, Any]) -> Call:
    """The same images from the teacher's best setting."""
    teacher = load_teacher("digits")
    cond = teacher.encode([i % 10 for i in range(BATCH)])

    def call() -> object:
        z = torch.randn(BATCH, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
        x0 = sample_teacher(teacher, cond, z, record["steps"], record["guidance_scale"])
        return (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    return call


def results(output: Path, options: Options, began: float) -> dict[str, Any]:
    """Everything measured; the bars of comparison are on the same number of samples."""
    teacher, loaded = teacher_record(), {1: load_student(output / "student")}
    if options.long:
        loaded[4] = load_student(output / "four_steps" / "student")
    students = [measure_student(own, n, options.num_samples) for n, own in loaded.items()]
    calls = [teacher_call(teacher), *(student_call(own, n) for n, own in loaded.items())]
    latencies = ms_per_image(calls, BATCH)
    for row, latency in zip((teacher, *students), latencies, strict=True):
        row["ms_per_image"] = latency
    fid_floor = floor(options.num_samples)
    for row in students:
        row["fid_ratio"] = (row["fid"] - fid_floor) / (teacher["fid"] - fid_floor)
        row["speed_up"] = teacher["ms_per_image"] / row["ms_per_image"]
    return {
        "world": "digits",
        "method": "dmd2",
        "seed": options.seed,
        "long": options.long,
        "teacher": teacher,
        "student": students[0],
        "students": students,
        "fid_floor": fid_floor,
        "fid_ratio": students[0]["fid_ratio"],
        "speed_up": students[0]["speed_up"],
        "seconds": time.perf_counter() - began,
        "peak_memory_gb": _peak_memory_gb(),
        "versions": {
            "stepdistill": importlib.metadata.version("stepdistill"),
            "torch": torch.__version__,
            "diffusers": importlib.metadata.version("diffusers"),
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write results.json and report.html, and say what was lost."""
    began = time.perf_counter()
    options = parse("stepdistill quickstart", (Options,), {}, arguments).get(Options)
    output = Path(options.output)
    one: dict[str, Any] = {}
    four: dict[str, Any] | None = None
    if options.long:
        one, four = digits.long(), digits.long_four_steps()
    if options.max_steps is not None:
        for preset in (one, four or {}):
            preset["max_steps"] = options.max_steps
    if not train(output, 1, options.seed, one):
        return
    if four is not None and not train(output / "four_steps", 4, options.seed, four):
        return
    record = results(output, options, began)
    (output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    page = write_report(output)
    for row in record["students"]:
        print(
            f"{row['nfe']} call(s): Frechet distance {row['fid']:.4f} "
            f"(teacher, {record['teacher']['nfe']} calls: {record['teacher']['fid']:.4f}; ratio "
            f"{row['fid_ratio']:.2f}), class accuracy {row['class_accuracy']:.2f} % "
            f"({record['teacher']['class_accuracy']:.2f} %), {row['speed_up']:.1f} times as fast"
        )
    print(f"student: {output / 'student'}\npage:    {page}")


def _peak_memory_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    guarded(main)
