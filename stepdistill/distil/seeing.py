"""Samples drawn once on all ranks, and what every extractor and scorer makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..conditioning import Conditioning
from ..errors import NonFiniteError, StepDistillError
from ..methods.base import Method
from ..metrics.extractors.pixels import colour
from ..metrics.features import eight_bit
from ..sampling import NoiseStreams, sample_student, sample_teacher
from .told import Order, Told
from .validation import picture
from .wanted import Networks

# (conditioning of a block, its image seeds) -> pictures in [-1, 1]
Sampler = Callable[[Conditioning, range], Tensor]


@dataclass(frozen=True)
class Seen:
    """Features (N, D) by the key of a view, and scores (N,) by the scorer."""

    features: dict[str, Tensor]
    scores: dict[str, Tensor]


@dataclass(frozen=True)
class Seeing:
    """How samples are drawn: what each is told, and how many at a time, which the ranks share."""

    told: Told
    order: Order
    block: int
    accelerator: Accelerator

    @torch.no_grad()
    def seen(
        self, sampler: Sampler, seeds: range, networks: Networks, bar: str | None = None
    ) -> Seen:
        """On all ranks, of samples 0, 1, ... with those ``seeds``. Each rank takes every so
        many-th block, so the samples do not depend on how many there are.

        NonFiniteError names the seeds of a block with NaN or Inf.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        num = len(seeds)
        features = {key: torch.zeros(num, own.size) for key, own in networks.views.items()}
        scores = {name: torch.zeros(num) for name in networks.scorers}
        begins = range(rank * self.block, num, ranks * self.block)
        silent = None if bar and self.accelerator.is_main_process else True
        for begin in tqdm(begins, bar, disable=silent):
            rows = slice(begin, min(begin + self.block, num))
            own = seeds[rows]
            places = self.order.places[rows].tolist()
            try:
                pixels = eight_bit(sampler(self.told.read(places), own))
                for key, view in networks.views.items():
                    features[key][rows] = view.of_pixels(pixels).float().cpu()
                for name, scorer in networks.scorers.items():
                    given = [colour(one) for one in pixels]
                    found = scorer.of_pixels(given, self.told.prompts(places))
                    scores[name][rows] = found.float().cpu()
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"while measuring, seeds {own.start} to {own.stop - 1}: {error}"
                ) from error
            except torch.OutOfMemoryError as error:
                raise StepDistillError(
                    f"out of memory while measuring {len(own)} samples at a time: give a smaller "
                    "eval.batch_size, and run the same command to go on"
                ) from error
        return Seen(self._whole(features), self._whole(scores))

    def _whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rows of all ranks. Those of the others are zero here, so that the sum is exact."""
        on, found = self.accelerator.device, {}
        for name, part in parts.items():
            whole: Tensor = self.accelerator.reduce(part.to(on), "sum")
            found[name] = whole.cpu()
        return found


def student_sampler(method: Method, told: Told) -> Sampler:
    """Pictures of the generator as it is when called."""
    teacher = told.teacher

    def sample(cond: Conditioning, seeds: range) -> Tensor:
        generator, shape = method.roles["generator"].frozen, teacher.sample_shape
        x0 = sample_student(generator, method.plan, cond, shape, NoiseStreams(seeds))
        return picture(teacher, x0)

    return sample


def teacher_sampler(told: Told, guidance_scale: float) -> Sampler:
    """Pictures of the teacher, in its own steps."""
    teacher = told.teacher

    def sample(cond: Conditioning, seeds: range) -> Tensor:
        z = NoiseStreams(seeds).normal(teacher.sample_shape)
        return picture(teacher, sample_teacher(teacher, cond, z, guidance_scale=guidance_scale))

    return sample
