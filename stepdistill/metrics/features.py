"""What a metric sees: extractors of features and scorers, of 8-bit images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NonFiniteError

Pixels = NDArray[np.uint8]  # one image (H, W, C)


@dataclass(frozen=True)
class Features:
    """A feature extractor: 8-bit images -> features (B, size).

    ``mode`` is how files are decoded (PIL's), ``prepare`` turns one image into the network's input
    and ``resize`` says in words what it does to the pixels. ``logits`` (K, size), where the network
    has classes, makes their logits of its features: features @ logits.T. ``of_patches`` says that
    it sees a part of each image alone.
    """

    name: str
    size: int
    sha256: str  # of the weights
    mode: str
    prepare: Callable[[Pixels], Tensor]
    network: Callable[[Tensor], Tensor]
    batch_size: int = 64  # that suits it
    resize: str = "none"
    logits: Tensor | None = None
    of_patches: bool = False

    def __call__(self, x0: Tensor) -> Tensor:
        """x0 (B, C, H, W) in [-1, 1] -> (B, size), of the 8-bit images that files would hold."""
        return self.of_pixels(eight_bit(x0))

    def of_pixels(self, images: Iterable[Pixels]) -> Tensor:
        """(B, size) of images (H, W, C) in 0 to 255."""
        return self.network(torch.stack([self.prepare(pixels) for pixels in images]))


@dataclass(frozen=True)
class Scorer:
    """A score of an image and its prompt: 8-bit RGB images -> (B,).

    ``prepare`` and ``resize`` are as a Features'; ``network`` takes prepared images (B, *) and
    their prompts.
    """

    name: str
    sha256: str  # of the weights
    prepare: Callable[[Pixels], Tensor]
    network: Callable[[Tensor, Sequence[str]], Tensor]
    batch_size: int = 64  # that suits it
    resize: str = "none"

    def of_pixels(self, images: Iterable[Pixels], prompts: Sequence[str]) -> Tensor:
        """(B,) of images (H, W, 3) in 0 to 255 and as many prompts."""
        return self.network(torch.stack([self.prepare(p) for p in images]), prompts)


@torch.no_grad()
def quantised(x0: Tensor) -> Tensor:
    """What an image file would hold: clamped to [-1, 1] and rounded to 8 bits, as x0 again."""
    return ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def eight_bit(x0: Tensor) -> Pixels:
    """x0 (B, C, H, W) in [-1, 1] -> what image files hold, (B, H, W, C) in 0 to 255.

    ``features.quantised`` in integers. NonFiniteError names the first image with a NaN or Inf.
    """
    finite = x0.isfinite().flatten(1).all(1)
    if not finite.all():
        raise NonFiniteError(f"NaN or Inf in image {int(finite.int().argmin())} of the batch")
    pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: Pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array


def digest(file: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    running = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            running.update(block)
    return running.hexdigest()
