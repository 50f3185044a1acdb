"""The check of an exported folder: its model card's own code, run where stepdistill is not."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .denoisers import Denoiser
from .errors import StepDistillError
from .plans import StepPlan
from .sampling import NoiseStreams, sample_student
from .teachers import Teacher

CHECK_SEEDS = range(4)
# largest |difference|, in units of the samples' standard deviation where that is above 1
TOLERANCE = 1e-4
# of models in half precision, whose stock pipeline rounds its latents too: root mean square
HALF_TOLERANCE = 0.1

# (teacher, prompts) -> the stock pipeline's arguments
Call = Callable[[Teacher, Sequence[Any]], dict[str, Any]]

# Runs alone, in the folder: only diffusers and what it needs. The loading code stands in between.
_BEFORE = """
import copy, pickle, sys
sys.modules["stepdistill"] = None
import numpy, torch
counts, call, seeds, output = pickle.load(open(sys.argv[1], "rb"))
"""
_AFTER = """
pipeline.set_progress_bar_config(disable=True)
def sample(steps):
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    given = copy.deepcopy(call)  # Z-Image's pipeline writes into the list of prompts
    found = pipeline(num_inference_steps=steps, generator=generators, return_dict=False, **given)[0]
    return numpy.asarray(torch.as_tensor(found).float())
numpy.save(output, numpy.stack([sample(steps) for steps in counts]))
"""


def check(
    generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path, code: str, call: Call
) -> float:
    """How much the pipeline that ``code`` loads in ``folder`` differs from the trainer's own x0 of
    the same seeds, at worst over the numbers of steps that it can be called with.

    Both run on the CPU. StepDistillError above the tolerance.
    """
    family, seeds = teacher.family, CHECK_SEEDS
    prompts = teacher.examples(len(seeds))
    counts = family.counts(teacher, plan)
    arguments = {**call(teacher, prompts), "output_type": family.output_type}
    stock = _stock_samples(folder, code, counts, arguments)
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
    folder: Path, code: str, counts: list[int], arguments: dict[str, Any]
) -> list[Tensor]:
    """For each of ``counts`` what the pipeline returns, as any user of the folder gets it."""
    with tempfile.TemporaryDirectory() as place:
        task, output = Path(place) / "task", Path(place) / "samples.npy"
        task.write_bytes(pickle.dumps((counts, arguments, list(CHECK_SEEDS), str(output))))
        command = [sys.executable, "-c", _BEFORE + code + _AFTER, str(task)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise StepDistillError(f"the exported folder does not load:\n{done.stderr[-2000:]}")
        return list(torch.from_numpy(np.load(output)))
