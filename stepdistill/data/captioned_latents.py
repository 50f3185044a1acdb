"""The captioned digits as a latent text-to-image model sees them: encoded once, kept in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..conditioning import Conditioning
from .captioned_digits import CaptionedDigits
from .loading import TensorData

AT_ONCE = 250  # pictures, or captions, in a call of an encoder


@dataclass(frozen=True)
class CaptionedLatents:
    """``x0`` (N, 4, 8, 8) of the data set's first N pictures, and their captions."""

    x0: Tensor
    captions: tuple[str, ...]

    @classmethod
    def of(cls, encode_images: Callable[[Tensor], Tensor], count: int) -> CaptionedLatents:
        """Draw the first ``count`` pictures of the captioned digits and encode them."""
        data, x0, captions = CaptionedDigits(count=count), [], list[str]()
        for begin in tqdm(range(0, count, AT_ONCE), "captioned digits", disable=None):
            indices = [*range(begin, min(begin + AT_ONCE, count))]
            x0.append(encode_images(data.fetch(indices)[0]))
            captions += [data.example(index).caption.text for index in indices]
        return cls(torch.cat(x0), tuple(captions))

    def told(self, encode: Callable[[Sequence[str]], Conditioning]) -> TensorData:
        """Training data: the captions as ``encode`` conditions a model on them, each one once."""
        different = [*dict.fromkeys(self.captions)]
        parts = [different[i : i + AT_ONCE] for i in range(0, len(different), AT_ONCE)]
        cond = Conditioning.cat([encode(part).to("cpu") for part in parts])
        row = {caption: i for i, caption in enumerate(different)}
        each = cond.select(torch.tensor([row[c] for c in self.captions]))
        return TensorData(self.x0, each, prompts=self.captions)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x0": self.x0.contiguous()}, path, {"captions": json.dumps(self.captions)})

    @classmethod
    def load(cls, path: Path) -> CaptionedLatents:
        """Read what :meth:`save` wrote."""
        with safe_open(path, "pt") as file:
            return cls(file.get_tensor("x0"), tuple(json.loads(file.metadata()["captions"])))
