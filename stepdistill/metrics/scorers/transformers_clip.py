"""A CLIP of transformers with its tokenizer and its preparation of images, from one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import UserError, first_line
from ..extractors.pretrained import load_pretrained, weights_digest
from ..features import Pixels
from .checkpoints import UNREADABLE

HERE = {"local_files_only": True}  # never the hub
RESIZE = "224 bicubic (PIL), middle square"


@dataclass(frozen=True)
class Clip:
    """``model`` is a float32 CLIPModel, ``tokenizer`` and ``processor`` are transformers'.

    ``prepare`` resizes, crops and normalises an image as the processor says, (3, H, W).
    """

    model: Any
    tokenizer: Any
    processor: Any
    prepare: Callable[[Pixels], Tensor]
    sha256: str  # of the weights

    @property
    def positions(self) -> int:
        """Tokens that a prompt may have."""
        return int(self.model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def image_embeddings(self, inputs: Tensor) -> Tensor:
        """(B, D), projected, not normalised."""
        return embeddings(self.model.get_image_features(inputs.to(self.model.device)))

    @torch.no_grad()
    def text_embeddings(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, D), projected, not normalised, of tokens and the mask of those that count (B, T)."""
        place = self.model.device
        return embeddings(self.model.get_text_features(tokens.to(place), mask.to(place)))


def load_clip(folder: str, device: torch.device | str) -> Clip:
    """The CLIP of ``folder``; nothing is downloaded.

    Images are resized by PIL whatever the version of transformers: that is what published scores
    were taken with, and what newer versions no longer do by themselves. UserError for a folder that
    is damaged, is no CLIP, or lacks weights or the vocabulary, which transformers would make up.
    """
    import transformers

    # the plain name was PIL's before transformers 5
    images = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    model = load_pretrained(transformers.CLIPModel, folder, device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **HERE)
        processor = images.from_pretrained(folder, **HERE)
    except (*UNREADABLE, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} lacks the tokenizer or the preparation of images of a CLIP "
            f"({first_line(error)}): fetch all of its repository's .json and .txt files"
        ) from error
    if len(tokenizer) < model.config.text_config.vocab_size:
        raise UserError(f"{folder} lacks the vocabulary of its CLIP: fetch its tokenizer.json")
    prepare = partial(_prepare, processor=processor)
    return Clip(model, tokenizer, processor, prepare, weights_digest(folder))


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """(B,), of embeddings (B, D) divided by their norms."""
    normed = [x / x.norm(p=2, dim=-1, keepdim=True) for x in (images, texts)]
    products: Tensor = normed[0] * normed[1]
    return products.sum(-1)


def _prepare(pixels: Pixels, processor: Any) -> Tensor:
    inputs = processor(images=Image.fromarray(pixels), return_tensors="pt")
    image: Tensor = inputs["pixel_values"][0]
    return image


def embeddings(output: Any) -> Tensor:
    """What transformers returns bare before its version 5, and as a record's field since."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found
