"""A teacher's autoencoder as losses on pixels call it: with gradient, and with frozen weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from .teachers import Teacher


class Decoder(nn.Module):
    """x0 -> pixels in [-1, 1], as ``Teacher.decode``; a gradient of the pixels reaches x0.

    The autoencoder, if the family has one, is taken along to the teacher's own device: a loss
    decodes every batch there. A copy of this module has a copy of it, on whatever device that is.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        autoencoder: Any = getattr(teacher.pipeline, "vae", None)
        self.autoencoder = autoencoder
        self._teacher = replace(teacher, pipeline=SimpleNamespace(vae=autoencoder))
        self.to(device_of(teacher))

    def forward(self, x0: Tensor) -> Tensor:
        """Pictures (B, C, H, W), or videos (B, C, frames, H, W)."""
        return self._teacher.decode(x0)


def device_of(teacher: Teacher) -> Any:
    """Where the teacher's network is."""
    return next(teacher.denoiser.parameters()).device


def pictures(pixels: Tensor) -> Tensor:
    """(N, 3, H, W): grey in each of three channels; the frames of videos one after the other."""
    if pixels.ndim == 5:
        pixels = pixels.transpose(1, 2).flatten(0, 1)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
