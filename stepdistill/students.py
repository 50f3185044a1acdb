"""A student folder as its users run it: the stock diffusers pipeline, whole calls, image seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .families import of_pipeline
from .plans import StepPlan
from .teachers import CARD, first_line, read_card, read_model_index


@dataclass(frozen=True)
class Student:
    """A diffusers pipeline and what it may be asked for.

    ``plan`` is the trained one, None for a folder that stepdistill did not write.
    """

    pipeline: Any
    plan: StepPlan | None
    num_classes: int | None

    def steps(self, asked: int | None) -> int:
        """``asked`` if the plan allows it, by default the trained number. UserError otherwise."""
        if self.plan is None:
            if asked is not None and asked < 1:
                raise UserError(f"steps must be at least 1, got {asked}")
            return asked or 1
        return self.plan.steps if asked is None else self.plan.subset(asked).steps

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

    def sample(
        self, labels: Sequence[int] | None, seeds: Sequence[int], steps: int, batch_size: int = 128
    ) -> Tensor:
        """x0 (N, C, H, W) in [-1, 1], clamped as the pipeline does; image i has seeds[i]."""
        parts = []
        for begin in range(0, len(seeds), batch_size):
            own = seeds[begin : begin + batch_size]
            call: dict[str, Any] = {}
            if labels is not None:
                call["class_labels"] = list(labels[begin : begin + batch_size])
            pixels = self.pipeline(
                batch_size=len(own),
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed in own],
                output_type="np",
                **call,
            ).images
            parts.append(torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2) * 2 - 1)
        return torch.cat(parts)


def load_student(folder: Path) -> Student:
    """Load a diffusers folder of a known family; UserError if it is missing or damaged."""
    if not folder.exists():
        raise UserError(f"there is no folder {folder}")
    of_pipeline(str(read_model_index(folder).get("_class_name")), str(folder))
    card = read_card(folder)
    try:
        plan = StepPlan.from_dict(card["plan"]) if "plan" in card else None
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{folder / CARD} holds no readable step plan: {error}") from error
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} could not be loaded, its files look damaged: {first_line(error)}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    classes = pipeline.unet.config.num_class_embeds
    if classes is not None:  # the null class of a teacher is not one to sample
        classes -= card.get("null_class") is not None
    return Student(pipeline, plan, card.get("num_classes", classes))
