"""A negative prompt in a Conditioning, and how adapters hand it to the network: for training."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..errors import UserError
from .heads import SCALE, TOKENS, halves
from .networks import is_steered

EMBEDS, MASK = "prompt_embeds", "prompt_mask"  # the tensors with an axis of tokens


def with_negative(
    cond: Conditioning, negative: Conditioning, scale: Tensor | float
) -> Conditioning:
    """``cond`` with the tokens of ``negative`` (one sample's, or B) behind its own.

    ``scale`` is NASA's a, a number or (B,). What is not tokens, such as a pooled embedding or
    sizes, stays the prompt's. For networks that :func:`~stepdistill.negative_attention.steer` has
    changed. UserError where there are no tokens, or not as many in both.
    """
    if EMBEDS not in cond or EMBEDS not in negative:
        raise UserError("a negative prompt needs a teacher that is told by text, not by classes")
    count, other = cond[EMBEDS].shape[1], negative[EMBEDS].shape[1]
    if count != other:
        raise UserError(
            f"the negative prompt has {other} tokens where prompts have {count}: encode both with "
            "the same max_tokens"
        )
    rows = negative.to(cond[EMBEDS].device).expand(cond.batch_size)
    names = [name for name in (EMBEDS, MASK) if name in cond]
    tokens = {x: torch.cat([cond[x], rows[x].to(cond[x].dtype)], dim=1) for x in names}
    a = torch.as_tensor(scale, device=cond[EMBEDS].device).expand(cond.batch_size)
    return cond.replace(Conditioning({**tokens, SCALE: a}))


def attention_arguments(network: nn.Module, cond: Conditioning) -> dict[str, Any] | None:
    """What a backbone passes as ``cross_attention_kwargs`` or ``joint_attention_kwargs``.

    None for a conditioning without a negative prompt. Raises RuntimeError for one with, where the
    network was not steered: it would take the negative prompt for a part of the prompt.
    """
    if SCALE not in cond:
        return None
    if not is_steered(network):
        raise RuntimeError("a negative prompt for a network without steer(network)")
    if isinstance(network, FluxTransformer2DModel):
        return {SCALE: cond[SCALE], TOKENS: halves(cond[EMBEDS], 1)[0].shape[1]}
    return {SCALE: cond[SCALE]}
