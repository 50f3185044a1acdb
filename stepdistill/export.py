"""Export: generator + StepPlan -> a stock diffusers folder that checks itself."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import StepDistillError, UserError
from .plans import StepPlan
from .sampling import NoiseStreams, sample_student
from .teachers import CARD, Teacher, read_card

CHECK_SEEDS = range(4)
TOLERANCE = 1e-4  # largest |difference| of pixels in [0, 1]

# Runs alone: only diffusers and what it needs, in a process where stepdistill cannot be imported.
_FRESH_PROCESS = """
import json, sys
sys.modules["stepdistill"] = None
import numpy, torch
from diffusers import DiffusionPipeline
folder, counts, labels, seeds, output = json.loads(sys.argv[1])
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
call = dict(class_labels=labels) if labels is not None else {}
def sample(steps):
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    return pipeline(batch_size=len(seeds), num_inference_steps=steps, generator=generators,
                    output_type="np", **call).images
numpy.save(output, numpy.stack([sample(steps) for steps in counts]))
"""


def export(
    generator: nn.Module,
    teacher: Teacher,
    plan: StepPlan,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``folder`` whole or not at all, and check it in a fresh process.

    ``card`` is kept beside the weights as ``stepdistill.json`` with the plan. An earlier student
    there is replaced; UserError if something else is, or nothing can be. StepDistillError if the
    folder's samples differ from the trainer's own x0.
    """
    assert isinstance(generator, Denoiser)
    folder = Path(folder).resolve()
    claim(folder)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        teacher.save_student(generator, plan, aside)
        record = {
            "teacher": teacher.name,
            **(card or {}),
            "family": teacher.family,
            "plan": plan.to_dict(),
        }
        record["sample_shape"] = list(teacher.sample_shape)
        record["num_classes"] = teacher.num_classes
        (aside / CARD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        (aside / "README.md").write_text(_model_card(record, plan))
        check(generator, teacher, plan, aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StepDistillError(f"could not write the student to {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # after a failure; renamed after a success


def claim(folder: Path) -> None:
    """UserError if ``folder`` holds something that is no student, or cannot be made."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if taken and "plan" not in read_card(folder):
            raise UserError(f"{folder} holds something that is no student: give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from error


def check(generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path) -> float:
    """The largest pixel difference between the folder, run by stock diffusers in a fresh process,
    and the trainer's own x0 of the same seeds, for each number of steps that ``plan`` allows. Both
    run on the CPU. StepDistillError above the tolerance."""
    counts = plan.counts()
    labels = None
    if teacher.num_classes is not None:
        labels = [seed % teacher.num_classes for seed in CHECK_SEEDS]
    stock = _stock_samples(folder, counts, labels)
    cond = teacher.encode(labels if labels is not None else [None] * len(CHECK_SEEDS))
    own = copy.deepcopy(generator).cpu().eval()
    worst = 0.0
    for steps, images in zip(counts, stock, strict=True):
        streams = NoiseStreams(CHECK_SEEDS)
        x0 = sample_student(own, plan.subset(steps), cond, teacher.sample_shape, streams)
        difference = float((to_pixels(x0) - images).abs().max())
        if not difference <= TOLERANCE:  # a NaN too
            raise StepDistillError(
                f"the exported folder gives other samples than the trainer: pixels differ by "
                f"{difference:.2g} at {steps} steps (tolerance {TOLERANCE})"
            )
        worst = max(worst, difference)
    return worst


def _stock_samples(folder: Path, counts: list[int], labels: list[int] | None) -> Tensor:
    """Pixels in [0, 1], (len(counts), images, C, H, W), as any user of the folder gets them."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "images.npy"
        task = json.dumps([str(folder.resolve()), counts, labels, list(CHECK_SEEDS), str(output)])
        command = [sys.executable, "-c", _FRESH_PROCESS, task]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if done.returncode != 0:
            raise StepDistillError(f"the exported folder does not load:\n{done.stderr[-2000:]}")
        return torch.from_numpy(np.load(output)).permute(0, 1, 4, 2, 3)


def to_pixels(x0: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (x0 / 2 + 0.5).clamp(0, 1)


def _model_card(record: dict[str, Any], plan: StepPlan) -> str:
    shown = "\n".join(f"- {key}: {value}" for key, value in sorted(record.items()))
    labels = ", class_labels=[0, 0, 0, 0]" if record.get("num_classes") else ""
    return f"""---
library_name: diffusers
tags: [stepdistill, step-distillation]
---
# A {plan.steps}-step student of `{record.get("teacher", "?")}`

```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(".")
images = pipeline(batch_size=4, num_inference_steps={plan.steps}{labels}).images
```

{shown}
"""
