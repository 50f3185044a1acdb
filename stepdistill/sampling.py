"""Sampling by image seed: the same image for the same seed, whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .conditioning import Conditioning
from .denoisers import Denoiser, Denoises
from .plans import StepPlan, generate
from .schedules import Schedule
from .teachers import Teacher


class NoiseStreams:
    """One generator an image; each draw takes the next numbers of every image's own stream.

    The same numbers as a diffusers pipeline draws from a list of generators on the CPU.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """N(0, I) of shape (images, *shape)."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self.generators])


@torch.no_grad()
def sample_student(
    generator: Denoises,
    plan: StepPlan,
    cond: Conditioning,
    shape: Sequence[int],
    streams: NoiseStreams,
    schedule: Schedule | None = None,
) -> Tensor:
    """x0 of a student after all steps of ``plan``; ``generator`` is a Denoiser or a view of one."""
    if schedule is None:
        assert isinstance(generator, Denoiser)
        schedule = generator.schedule
    z = streams.normal(shape).to(_device(generator))
    return generate(
        generator, schedule, plan, z, cond.to(z.device), lambda: streams.normal(shape).to(z.device)
    )


@torch.no_grad()
def sample_teacher(
    teacher: Teacher,
    cond: Conditioning,
    z: Tensor,
    steps: int | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """x0 of a teacher from unit noise ``z``, by its family's sampler, by default in its steps."""
    z = z.to(_device(teacher.denoiser))
    given = cond.to(z.device)
    return teacher.family.sample(teacher, teacher.guided(guidance_scale), z, given, steps)


def _device(module: object) -> torch.device:
    assert isinstance(module, torch.nn.Module)
    return next(module.parameters()).device
