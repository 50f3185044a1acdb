"""Someone else's pipeline: any diffusers pipeline that is called with prompts or classes.

It is sampled as its users call it, with its own defaults. Nothing is known of its training.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones.components import read_pipeline
from ...errors import UserError, first_line
from ...plans import StepPlan
from ...students import call_pipeline
from ...teachers import LoadOptions

NEEDED = ("num_inference_steps", "generator", "output_type")
MORE = ("image", "mask_image", "control_image", "video")  # of pipelines that edit or follow


@dataclass(frozen=True)
class ForeignPipeline:
    """``subject.Sampled`` of a pipeline class that has no adapter."""

    pipeline: Any
    num_classes: int | None = None
    plan: StepPlan | None = None

    @property
    def is_told_by_text(self) -> bool:
        """Whether its call takes prompts."""
        return "prompt" in self._arguments

    def steps(self, asked: int | None) -> int:
        """``asked``, by default the pipeline's own number. UserError below 1."""
        if asked is not None and asked < 1:
            raise UserError(f"steps must be at least 1, got {asked}")
        return asked or int(self._arguments["num_inference_steps"].default)

    def guidance(self, scale: float | None, anyway: bool = False) -> dict[str, Any]:
        """The argument for ``scale``. UserError for a pipeline that takes none."""
        if scale is None:
            return {}
        if "guidance_scale" not in self._arguments:
            raise UserError(f"{type(self.pipeline).__name__} takes no guidance_scale: leave it out")
        return {"guidance_scale": scale}

    def is_called_alone(self, steps: int) -> bool:
        """Of several steps: where a foreign pipeline's later noise comes from is not known."""
        return steps > 1

    def sample(
        self,
        told: Sequence[Any] | None,
        seeds: Sequence[int],
        steps: int,
        batch_size: int = 128,
        alone: bool = True,
        **more: Any,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1]; sample i has seeds[i].

        Whether a pipeline draws later noise from its generators is not known: of several steps it
        is called once a sample, with torch's own generator at the sample's seed too.
        """
        size, parts = 1 if alone and self.is_called_alone(steps) else batch_size, []
        for begin in range(0, len(seeds), size):
            own = seeds[begin : begin + size]
            given: dict[str, Any] = {"batch_size": len(own)}
            if told is not None:
                given = {"prompt": list(told[begin : begin + size])}
            with torch.random.fork_rng():
                torch.manual_seed(own[0])
                parts.append(call_pipeline(self.pipeline, own, steps, **given, **more))
        return torch.cat(parts)

    @property
    def _arguments(self) -> Any:
        return inspect.signature(self.pipeline.__call__).parameters


def load_foreign(folder: Path, dtype: str = "float32") -> ForeignPipeline:
    """Load ``folder``. UserError if it is damaged, or is not called with prompts, or with nothing
    but a number of samples.
    """
    from diffusers import DiffusionPipeline

    try:
        pipeline = read_pipeline(DiffusionPipeline, folder, LoadOptions(dtype=dtype))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder} could not be loaded, its files look damaged, or its pipeline is not of this "
            f"diffusers: {first_line(error)}"
        ) from error
    arguments = inspect.signature(pipeline.__call__).parameters
    lacking = [name for name in NEEDED if name not in arguments]
    more = [name for name in MORE if name in arguments]
    if not {"prompt", "batch_size"} & arguments.keys() or lacking or more:
        why = f"is told {', '.join(more)}" if more else "is called in another way"
        raise UserError(
            f"{type(pipeline).__name__} {why}, not prompts or a number of samples alone: sample it "
            "into a folder by yourself, and measure that with stepdistill eval images"
        )
    return ForeignPipeline(pipeline)
