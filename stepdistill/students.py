"""A model as its users run it: the stock diffusers pipeline, whole calls, image seeds.

An EDM teacher is the exception: its folder is a ``ConsistencyModelPipeline`` with our card. That
pipeline noises x0_hat again at each step, as its students do; the teacher is sampled by Heun's
method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbones.family import Family
from .errors import UserError
from .families import of_pipeline
from .plans import StepPlan
from .quiet import truncation_asked_for
from .sampling import NoiseStreams, sample_teacher
from .single_file import described_in
from .teachers import (
    CARD,
    LoadOptions,
    Teacher,
    first_line,
    load_teacher,
    read_card,
    read_model_index,
)


def call_pipeline(pipeline: Any, seeds: Sequence[int], steps: int, **given: Any) -> Tensor:
    """One call of a diffusers pipeline: images (N, C, H, W), or videos (N, C, frames, H, W), in
    [-1, 1], each with the generator of its own seed."""
    pixels = pipeline(
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        return_dict=False,
        **given,
    )[0]
    return torch.from_numpy(np.asarray(pixels)).movedim(-1, 1) * 2 - 1


@dataclass(frozen=True)
class Student:
    """A diffusers pipeline and what it may be asked for.

    ``plan`` is the trained one and ``counts`` the numbers of steps that its folder can be called
    with; None and () for a folder that stepdistill did not write. ``call`` are the arguments that
    each call needs.
    """

    pipeline: Any
    family: Family
    plan: StepPlan | None
    num_classes: int | None
    counts: tuple[int, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_told_by_text(self) -> bool:
        """Whether it samples prompts."""
        return self.family.is_told_by_text

    @property
    def is_teacher(self) -> bool:
        """Whether it is to be sampled in many steps: no student of ours, no consistency model."""
        return self.plan is None and self.family.samples_teachers

    def steps(self, asked: int | None) -> int:
        """``asked`` if it can be called so, by default the trained number. UserError otherwise."""
        if self.plan is None:
            if asked is not None and asked < 1:
                raise UserError(f"steps must be at least 1, got {asked}")
            return asked or 1
        if asked is None:
            return self.plan.steps
        if asked not in self.counts:
            raise UserError(
                f"this student has {self.plan.steps} trained steps: use one of {list(self.counts)}"
            )
        return asked

    def labels(self, num: int, asked: Sequence[int] = ()) -> list[int] | None:
        """``num`` class labels: those ``asked`` for, or all, in turn; None without classes."""
        if self.num_classes is None:
            if asked:
                raise UserError("this model has no classes: leave labels out")
            return None
        unknown = [k for k in asked if not 0 <= k < self.num_classes]
        if unknown:
            raise UserError(f"class labels must lie in 0 to {self.num_classes - 1}: {unknown}")
        kinds = list(asked) or list(range(self.num_classes))
        return [kinds[i % len(kinds)] for i in range(num)]

    def guidance(self, scale: float | None, anyway: bool = False) -> dict[str, Any]:
        """The argument for a guidance scale. UserError for a student, unless ``anyway``: its own
        is inside it, but 1, which is off, and what its network is told.
        """
        if scale is None:
            return {}
        told = self.family.told_guidance(self.pipeline)
        if self.plan is not None and scale > 1 and scale != told and not anyway:
            trained = "without guidance" if told is None else f"at guidance_scale={told} alone"
            raise UserError(
                f"this student was trained {trained}, guidance_scale={scale} spoils it: leave it "
                "out, or add --anyway true"
            )
        return self.family.guidance_call(self.pipeline, scale)

    def is_called_alone(self, steps: int) -> bool:
        """Whether later noise comes from torch's own generator: each sample takes a call."""
        return steps > 1 and not self.family.passes_generator

    def sample(
        self,
        told: Sequence[Any] | None,
        seeds: Sequence[int],
        steps: int,
        batch_size: int = 128,
        alone: bool = True,
        **more: Any,
    ) -> Tensor:
        """Images (N, C, H, W) or videos (N, C, frames, H, W) in [-1, 1], as the pipeline clamps.

        Sample i is told ``told[i]`` (a class number or a prompt) and has seeds[i]. A pipeline that
        draws later noise from torch's own generator is called once a sample, so that its samples do
        not depend on the batch; without ``alone`` they do, and come faster.
        """
        given = [None] * len(seeds) if told is None else told
        size, parts = 1 if alone and self.is_called_alone(steps) else batch_size, []
        for begin in range(0, len(seeds), size):
            own = slice(begin, begin + size)
            parts.append(self.sample_batch(given[own], seeds[own], steps, **more))
        return torch.cat(parts)

    def sample_batch(
        self, told: Sequence[Any], seeds: Sequence[int], steps: int, **more: Any
    ) -> Tensor:
        """One call of the pipeline, as :meth:`sample` makes them."""
        with (
            torch.random.fork_rng(enabled=not self.family.passes_generator),
            truncation_asked_for(self.pipeline, self.call.get("max_sequence_length")),
        ):
            if not self.family.passes_generator:
                torch.manual_seed(seeds[0])
            given = {**self.family.told(told), **self.call, **more}
            return call_pipeline(self.pipeline, seeds, steps, **given)


@dataclass(frozen=True)
class SampledByFamily(Student):
    """A teacher whose stock pipeline walks as students do: it is sampled by ``Family.sample``.

    Of ``edm-pixels`` that is Heun's method (Karras et al. 2022, Algorithm 1).
    """

    teacher: Teacher = field(kw_only=True)

    is_teacher = True

    @classmethod
    def of(cls, teacher: Teacher) -> SampledByFamily:
        """``teacher``, with its pipeline, its family and its classes."""
        classes = teacher.num_classes
        return cls(teacher.pipeline, teacher.family, None, classes, teacher=teacher)

    def steps(self, asked: int | None) -> int:
        """``asked``, by default the family's number of a teacher's steps. UserError below 1."""
        return super().steps(self.family.teacher_steps if asked is None else asked)

    def guidance(self, scale: float | None, anyway: bool = False) -> dict[str, Any]:
        """The argument of :meth:`sample`. UserError for a teacher that cannot be guided."""
        if scale is None:
            return {}
        self.teacher.guided(scale)
        return {"guidance_scale": scale}

    def sample_batch(
        self, told: Sequence[Any], seeds: Sequence[int], steps: int, **more: Any
    ) -> Tensor:
        """From the noise that the pipeline would begin with, by the family's sampler.

        Of ``more`` there is ``guidance_scale``, 1 unless given; UserError for anything else.
        """
        scale = more.pop("guidance_scale", 1.0)
        if more:
            raise UserError(f"{self.teacher.name} samples one size: {', '.join(more)} do not apply")
        z = NoiseStreams(seeds).normal(self.teacher.sample_shape)
        x0 = sample_teacher(self.teacher, self.teacher.encode(told), z, steps, scale)
        return self.teacher.decode(x0).clamp(-1, 1).cpu()


def load_student(folder: Path, config: str | None = None, dtype: str = "float32") -> Student:
    """Load a diffusers folder of a known family; UserError if it is missing or damaged.

    With a ``config`` it is one checkpoint file, which that folder or hub id describes. A folder
    with our card and no trained plan is a teacher's, and samples as its family says; one without
    our card is someone else's, a consistency model for instance, and samples as its pipeline does.
    """
    options = LoadOptions(config=config, dtype=dtype)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}")
    index = read_model_index(described_in(folder, config))
    family = of_pipeline(str(index.get("_class_name")), str(folder))
    card = read_card(folder)
    try:
        plan = StepPlan.from_dict(card["plan"]) if "plan" in card else None
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{folder / CARD} holds no readable step plan: {error}") from error
    if plan is None and card and not family.samples_teachers:
        return SampledByFamily.of(load_teacher(folder, options=options))
    from diffusers import DiffusionPipeline

    from .backbones.components import read_pipeline

    try:
        pipeline = read_pipeline(DiffusionPipeline, folder, options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} could not be loaded, its files look damaged: {first_line(error)}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    classes = family.classes(pipeline)
    if classes is not None:  # the null class of a teacher is not one to sample
        classes -= card.get("null_class") is not None
    counts = card.get("counts", [] if plan is None else plan.counts())
    return Student(
        pipeline,
        family,
        plan,
        card.get("num_classes", classes),
        tuple(counts),
        card.get("call", {}),
    )
