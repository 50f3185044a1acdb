"""What all kinds of attention do alike: halves of tokens, heads, the scale's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

SCALE = "negative_scale"  # the argument and the tensor of a conditioning that hold NASA's a
TOKENS = "negative_tokens"  # the argument of how many tokens a prompt has, in one stream


class Steered:
    """An attention processor that takes a negative prompt, over the ``stock`` one that it replaces,
    which all calls without ``negative_scale`` go to."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock


def halves(tokens: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(positive, negative): the first and the second half along ``dim``. UserError if odd."""
    count = tokens.shape[dim]
    if count % 2:
        raise UserError(
            f"a call with negative_scale needs as many negative tokens behind the positive ones, "
            f"and there are {count} in all: build it with negative_call or with_negative"
        )
    positive, negative = tokens.chunk(2, dim)
    return positive, negative


def in_heads(tokens: Tensor, projection: nn.Module, norm: nn.Module | None, attn: Any) -> Tensor:
    """(B, N, *) -> the projection (B, heads, N, d), normed by head where the network does."""
    projected: Tensor = projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return projected if norm is None else norm(projected)


def joined(heads: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads d)."""
    return heads.transpose(1, 2).flatten(2)


def through(attn: Any, z: Tensor) -> Tensor:
    """``z`` by the layer's last projection and its dropout."""
    projected: Tensor = attn.to_out[1](attn.to_out[0](z))
    return projected


def expanded(negative_scale: Tensor | float, like: Tensor) -> Tensor:
    """a, a number or (B,), as (B or 1, 1, 1, 1) for heads such as ``like``."""
    a = torch.as_tensor(negative_scale, dtype=like.dtype, device=like.device)
    return a.reshape(-1, 1, 1, 1)
