"""How PixArt's stock pipelines, which pass no attention arguments, carry a negative prompt's scale.

The one tensor that they hand on untouched, beside the embeddings, is the mask of the text tokens:
1 for a token, 0 for padding, and here 2 + a for a token of the negative prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .heads import SCALE

MARK = 2.0


def marked(mask: Tensor, negative_mask: Tensor, scale: float) -> Tensor:
    """The masks (B, N) of prompt and negative prompt as one (B, 2 N) that says the scale."""
    return torch.cat([mask.float(), negative_mask.float() * (MARK + scale)], dim=1)


class ReadsMarks:
    """A forward pre-hook of a PixArt transformer."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A :func:`marked` mask becomes one of 0 and 1, and ``negative_scale``; no other does."""
        mask = kwargs.get("encoder_attention_mask")
        if mask is None or (top := float(mask.max())) < MARK:
            return None
        attention = {**(kwargs.get("cross_attention_kwargs") or {}), SCALE: top - MARK}
        mask = mask.clamp(max=1)
        return args, {**kwargs, "encoder_attention_mask": mask, "cross_attention_kwargs": attention}
