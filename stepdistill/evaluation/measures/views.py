"""What a metric looks at: an extractor, and what is done to an image before it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...metrics.extractors import extractor
from ...metrics.features import Features, Pixels
from .preprocess import centre_patch, centre_square


@dataclass(frozen=True)
class View:
    """An extractor by name, on images cut to a centred square and resized to ``size`` (LANCZOS),
    or on their centre of ``crop`` pixels, not resized; None leaves that out.
    """

    extractor: str
    size: int | None = None
    crop: int | None = None

    @property
    def key(self) -> str:
        """A name of its own."""
        size = "" if self.size is None else f"-{self.size}px"
        return f"{self.extractor}{size}" + ("" if self.crop is None else f"-crop{self.crop}")

    def open(self, weights: str | None, device: torch.device | str) -> Features:
        """The extractor behind these steps, under the view's name. UserError without weights."""
        found = extractor(self.extractor, weights, device)
        resize = found.resize
        if self.crop is not None:
            resize = f"centre crop to {self.crop}; {resize}"
        if self.size is not None:
            resize = f"centre square, LANCZOS to {self.size}; {resize}"
        return replace(
            found,
            name=self.key,
            prepare=_Steps(self, found),
            resize=resize,
            of_patches=self.crop is not None,
        )


@dataclass(frozen=True)
class _Steps:
    """``prepare`` of a view; a class, so that it can be sent to worker processes."""

    view: View
    inner: Features

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        if self.view.size is not None:
            pixels = centre_square(pixels, self.view.size)
        if self.view.crop is not None:
            pixels = centre_patch(pixels, self.view.crop)
        return self.inner.prepare(pixels)
