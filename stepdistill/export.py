"""Export: generator + StepPlan -> a stock diffusers folder that checks itself."""

from __future__ import annotations

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
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import StepDistillError
from .plans import StepPlan
from .sampling import NoiseStreams, sample_student
from .teachers import CARD, Teacher

CHECK_SEEDS = range(4)
TOLERANCE = 1e-4  # largest |difference| of pixels in [0, 1]

# Runs alone: only diffusers and what it needs, in a process where stepdistill cannot be imported.
_FRESH_PROCESS = """
import json, sys
sys.modules["stepdistill"] = None
import numpy, torch
from diffusers import DiffusionPipeline
folder, steps, labels, seeds, output = json.loads(sys.argv[1])
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(s) for s in seeds]
call = dict(class_labels=labels) if labels is not None else {}
images = pipeline(batch_size=len(seeds), num_inference_steps=steps, generator=generators,
                  output_type="np", **call).images
numpy.save(output, images)
"""


def export(
    generator: nn.Module,
    teacher: Teacher,
    plan: StepPlan,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``folder`` whole or not at all, and check it in a fresh process.

    ``card`` is kept beside the weights as ``stepdistill.json`` with the plan. Raises
    StepDistillError if the folder's samples differ from the trainer's own x0.
    """
    folder, card = Path(folder), {"teacher": teacher.name, **(card or {})}
    assert isinstance(generator, Denoiser)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        teacher.save_student(generator, plan, aside)
        record = {**card, "family": teacher.family, "plan": plan.to_dict()}
        record["sample_shape"] = list(teacher.sample_shape)
        record["num_classes"] = teacher.num_classes
        (aside / CARD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        (aside / "README.md").write_text(_model_card(record, plan))
        for steps in sorted({1, plan.steps} & {n for n in (1, plan.steps) if plan.steps % n == 0}):
            check(generator, teacher, plan.subset(steps), aside)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StepDistillError(f"could not write the student to {folder}: {error}") from error
    except StepDistillError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def check(generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path) -> float:
    """The largest pixel difference between the folder, run by stock diffusers in a fresh process,
    and the trainer's own x0 of the same seeds. StepDistillError above the tolerance."""
    labels = None
    if teacher.num_classes is not None:
        labels = [seed % teacher.num_classes for seed in CHECK_SEEDS]
    prompts = labels if labels is not None else [None] * len(CHECK_SEEDS)
    own = sample_student(
        generator.eval(),
        plan,
        teacher.encode(prompts),
        teacher.sample_shape,
        NoiseStreams(CHECK_SEEDS),
    )
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "images.npy"
        task = json.dumps(
            [str(folder.resolve()), plan.steps, labels, list(CHECK_SEEDS), str(output)]
        )
        command = [sys.executable, "-c", _FRESH_PROCESS, task]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if done.returncode != 0:
            raise StepDistillError(f"the exported folder does not load:\n{done.stderr[-2000:]}")
        stock = torch.from_numpy(np.load(output)).permute(0, 3, 1, 2)
    difference = float((to_pixels(own.cpu()) - stock).abs().max())
    if difference > TOLERANCE:
        raise StepDistillError(
            f"the exported folder gives other samples than the trainer: pixels differ by "
            f"{difference:.2g} at {plan.steps} steps (tolerance {TOLERANCE})"
        )
    return difference


def to_pixels(x0: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (x0 / 2 + 0.5).clamp(0, 1)


def _model_card(record: dict[str, Any], plan: StepPlan) -> str:
    shown = "\n".join(f"- {key}: {value}" for key, value in sorted(record.items()))
    labels = ", class_labels=[3] * 4" if record.get("num_classes") else ""
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
