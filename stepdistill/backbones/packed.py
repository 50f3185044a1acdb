"""Latents as tokens of 2x2 patches, as Flux and Qwen-Image transformers take them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): row by row, each patch as (channel, row, column)."""
    return pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`, for latents of ``height`` x ``width``."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return pixel_shuffle(grid, 2)
