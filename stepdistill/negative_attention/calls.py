"""A negative prompt for a student in its stock pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .heads import SCALE, TOKENS
from .marks import marked
from .networks import steer

Call = dict[str, Any]
UNGUIDED: Call = {"guidance_scale": 1.0}


def negative_call(
    pipeline: Any,
    prompts: str | Sequence[str],
    negative_prompts: str | Sequence[str],
    scale: float,
    **encoding: Any,
) -> Call:
    """The arguments with which ``pipeline`` samples ``prompts`` away from ``negative_prompts``.

        pipeline(**negative_call(pipeline, "a cat", "blurry", scale=0.2), num_inference_steps=1)

    They turn guidance off, as few-step students want it (Flux keeps the scale that it is told),
    and the pipeline's network is steered (:func:`~stepdistill.negative_attention.steer`), which
    other calls do not notice. ``scale`` is NASA's a in [0, 1]: 0.1 for SD 1.5, 0.2 for SD 2.1, 0.5
    for PixArt-alpha (arXiv:2412.02687). ``encoding`` goes to ``encode_prompt``, such as
    ``max_sequence_length``. One negative prompt stands for all. UserError for another kind of
    pipeline or network, or another scale.
    """
    kind = type(pipeline).__name__
    if kind not in CALLS:
        raise UserError(
            f"{kind} cannot be called with a negative prompt in its attention: "
            f"{', '.join(CALLS)} can"
        )
    if not 0 <= scale <= 1:
        raise UserError(f"the scale of a negative prompt must lie in [0, 1], got {scale}")
    told = [prompts] if isinstance(prompts, str) else list(prompts)
    away = [negative_prompts] if isinstance(negative_prompts, str) else list(negative_prompts)
    if len(away) not in (1, len(told)):
        raise UserError(
            f"there are {len(away)} negative prompts for {len(told)} prompts: give one for all, or "
            "one for each"
        )
    steer(pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer)
    away = away * len(told) if len(away) == 1 else away
    with torch.no_grad():
        return CALLS[kind](pipeline, told, away, scale, encoding)


def _sd(pipeline: Any, told: list[str], away: list[str], scale: float, encoding: Call) -> Call:
    device = pipeline._execution_device  # which the other pipelines find by themselves
    embeds, negative = pipeline.encode_prompt(told, device, 1, True, away, **encoding)
    both = torch.cat([embeds, negative], dim=1)
    return {**UNGUIDED, "prompt_embeds": both, "cross_attention_kwargs": {SCALE: scale}}


def _sdxl(pipeline: Any, told: list[str], away: list[str], scale: float, encoding: Call) -> Call:
    found = pipeline.encode_prompt(told, negative_prompt=away, **encoding)
    return {**_pooled(*found), "cross_attention_kwargs": {SCALE: scale}}


def _sd3(pipeline: Any, told: list[str], away: list[str], scale: float, encoding: Call) -> Call:
    found = pipeline.encode_prompt(told, None, None, negative_prompt=away, **encoding)
    return {**_pooled(*found), "joint_attention_kwargs": {SCALE: scale}}


def _pooled(embeds: Tensor, negative: Tensor, pooled: Tensor, _: Tensor) -> Call:
    """The pooled embedding stays the prompt's own."""
    both = torch.cat([embeds, negative], dim=1)
    return {**UNGUIDED, "prompt_embeds": both, "pooled_prompt_embeds": pooled}


def _flux(pipeline: Any, told: list[str], away: list[str], scale: float, encoding: Call) -> Call:
    embeds, pooled, _ = pipeline.encode_prompt(told, None, **encoding)
    negative, _, _ = pipeline.encode_prompt(away, None, **encoding)
    return {
        "prompt_embeds": torch.cat([embeds, negative], dim=1),
        "pooled_prompt_embeds": pooled,
        "joint_attention_kwargs": {SCALE: scale, TOKENS: embeds.shape[1]},
    }


def _pixart(pipeline: Any, told: list[str], away: list[str], scale: float, encoding: Call) -> Call:
    given = {"clean_caption": True, **encoding}  # as the pipeline's own call encodes
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(
        told, negative_prompt=away, **given
    )
    return {
        **UNGUIDED,
        "prompt_embeds": torch.cat([embeds, negative], dim=1),
        "prompt_attention_mask": marked(mask, negative_mask, scale),
    }


CALLS: dict[str, Callable[..., Call]] = {
    "StableDiffusionPipeline": _sd,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
}
