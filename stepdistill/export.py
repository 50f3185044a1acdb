"""Export: generator + StepPlan -> a stock diffusers folder that checks itself."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .backbones.family import dtype_argument
from .denoisers import Denoiser
from .errors import StepDistillError, UserError
from .plans import StepPlan
from .sampling import NoiseStreams, sample_student
from .teachers import CARD, Teacher, read_card

CHECK_SEEDS = range(4)
# largest |difference|, in units of the samples' standard deviation where that is above 1
TOLERANCE = 1e-4
# of models in half precision, whose stock pipeline rounds its latents too: root mean square
HALF_TOLERANCE = 0.1

# Runs alone: only diffusers and what it needs, in a process where stepdistill cannot be imported.
_FRESH_PROCESS = """
import copy, pickle, sys
sys.modules["stepdistill"] = None
import numpy, torch
from diffusers import DiffusionPipeline
folder, dtype, counts, call, seeds, output = pickle.load(open(sys.argv[1], "rb"))
pipeline = DiffusionPipeline.from_pretrained(folder, **dtype)
pipeline.set_progress_bar_config(disable=True)
def sample(steps):
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    given = copy.deepcopy(call)  # Z-Image's pipeline writes into the list of prompts
    found = pipeline(num_inference_steps=steps, generator=generators, return_dict=False, **given)[0]
    return numpy.asarray(torch.as_tensor(found).float())
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
            "family": teacher.family.card.name,
            "plan": plan.to_dict(),
            "sample_shape": list(teacher.sample_shape),
            "num_classes": teacher.num_classes,
            "counts": teacher.family.counts(plan),
        }
        (aside / CARD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        (aside / "README.md").write_text(_model_card(record, teacher, plan))
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
    """How much the folder, run by stock diffusers in a fresh process, differs from the trainer's
    own x0 of the same seeds, at worst over the numbers of steps that it can be called with.

    Both run on the CPU. StepDistillError above the tolerance.
    """
    family, seeds = teacher.family, CHECK_SEEDS
    prompts = teacher.examples(len(seeds))
    counts = family.counts(plan)
    stock = _stock_samples(folder, counts, teacher, prompts)
    own = copy.deepcopy(generator).cpu().eval()
    worst = 0.0
    for steps, samples in zip(counts, stock, strict=True):
        streams = NoiseStreams(seeds) if family.passes_generator else _StockStreams(teacher)
        cond, shape = teacher.encode(prompts), teacher.sample_shape
        x0 = sample_student(own, plan.subset(steps), cond, shape, streams)
        expected = family.stock_output(teacher, x0)
        difference, tolerance = _difference(samples, expected, teacher.options.torch_dtype)
        if not difference <= tolerance:  # a NaN too
            raise StepDistillError(
                f"the exported folder gives other samples than the trainer: they differ by "
                f"{difference:.2g} at {steps} steps (tolerance {tolerance})"
            )
        worst = max(worst, difference)
    return worst


def _difference(found: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """(difference, tolerance) of samples of a model in ``dtype``."""
    unit = max(1.0, float(expected.std()))
    error = (found - expected.to(found)) / unit
    if dtype == torch.float32:
        return float(error.abs().max()), TOLERANCE
    return float(error.square().mean().sqrt()), HALF_TOLERANCE


class _StockStreams(NoiseStreams):
    """As a pipeline draws that gives its generators to the first noise alone: each later draw is
    one for the whole batch, from torch's own generator.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(CHECK_SEEDS)
        self.teacher, self.first = teacher, True
        self.shared = torch.Generator().manual_seed(0)

    def normal(self, shape: Sequence[int]) -> Tensor:
        if self.first:
            self.first = False
            return super().normal(shape)
        return self.teacher.family.stock_noise(self.teacher, len(self.generators), self.shared)


def _stock_samples(
    folder: Path, counts: list[int], teacher: Teacher, prompts: Sequence[Any]
) -> list[Tensor]:
    """For each of ``counts`` what the pipeline returns, as any user of the folder gets it."""
    call = {**teacher.family.call(teacher, prompts), "output_type": teacher.family.output_type}
    with tempfile.TemporaryDirectory() as place:
        task, output = Path(place) / "task", Path(place) / "samples.npy"
        dtype, seeds = dtype_argument(teacher.options.torch_dtype), list(CHECK_SEEDS)
        asked = (str(folder.resolve()), dtype, counts, call, seeds, str(output))
        task.write_bytes(pickle.dumps(asked))
        command = [sys.executable, "-c", _FRESH_PROCESS, str(task)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if done.returncode != 0:
            raise StepDistillError(f"the exported folder does not load:\n{done.stderr[-2000:]}")
        return list(torch.from_numpy(np.load(output)))


def to_pixels(x0: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (x0 / 2 + 0.5).clamp(0, 1)


def _model_card(record: dict[str, Any], teacher: Teacher, plan: StepPlan) -> str:
    shown = "\n".join(f"- {key}: {value}" for key, value in sorted(record.items()))
    call = {**teacher.family.call(teacher, teacher.examples(1)), "num_inference_steps": plan.steps}
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.items())
    return f"""---
library_name: diffusers
tags: [stepdistill, step-distillation]
---
# A {plan.steps}-step student of `{record.get("teacher", "?")}`

```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(".")
samples = pipeline({arguments})[0]
```

{shown}
"""
