"""CLIPs as a loss calls them: pictures with a gradient, and texts to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from .assets import find_repo
from .errors import UserError
from .metrics.extractors.pixels import CLIP
from .metrics.scorers.open_clip_score import OpenClip, load_open_clip
from .metrics.scorers.torchmetrics_clip_score import FOLDER
from .metrics.scorers.transformers_clip import Clip, embeddings, load_clip

VIT_L_14 = replace(FOLDER, option="--method.align_scorer FOLDER")


class Towers(Protocol):
    """Pictures and texts as points of one space. A gradient reaches the pixels, and no weight."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """(N, D) of pictures (N, 3, H, W) in [-1, 1], of any size."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(N, D), without a gradient."""
        ...


class TransformersTowers(nn.Module):
    """A CLIPModel of transformers, with its own tokens, size, mean and deviation."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.model, self.tokenizer, self.positions = clip.model, clip.tokenizer, clip.positions
        self.side = clip.model.config.vision_config.image_size
        self.statistics = clip.processor.image_mean, clip.processor.image_std

    def image_features(self, pixels: Tensor) -> Tensor:
        """See :class:`Towers`."""
        inputs = prepared(pixels, self.side, self.statistics)
        return embeddings(self.model.get_image_features(inputs))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See :class:`Towers`; longer texts are cut."""
        words = self.tokenizer(
            list(texts),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.positions,
        )
        tokens, mask = (words[k].to(self.model.device) for k in ("input_ids", "attention_mask"))
        return embeddings(self.model.get_text_features(tokens, mask))


class OpenClipTowers(nn.Module):
    """A CLIP of open_clip, with its own tokens and size."""

    def __init__(self, clip: OpenClip) -> None:
        super().__init__()
        self.network, self.tokenize = clip.network, clip.tokenize
        self.side: int = clip.network.visual.image_size[0]

    def image_features(self, pixels: Tensor) -> Tensor:
        """See :class:`Towers`."""
        features: Tensor = self.network.encode_image(prepared(pixels, self.side, CLIP))
        return features

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See :class:`Towers`; longer texts are cut."""
        tokens = self.tokenize(list(texts)).to(next(self.network.parameters()).device)
        features: Tensor = self.network.encode_text(tokens)
        return features


def prepared(pixels: Tensor, side: int, statistics: tuple[Any, Any]) -> Tensor:
    """(N, 3, side, side): the shorter side at ``side`` by an antialiased bicubic filter, the middle
    square of [0, 1], less the mean, by the deviation. As published, but differentiable."""
    small = resize(pixels / 2 + 0.5, side, InterpolationMode.BICUBIC, antialias=True)
    mean, deviation = (small.new_tensor(own).reshape(-1, 1, 1) for own in statistics)
    square: Tensor = (center_crop(small, side) - mean) / deviation
    return square


def load_towers(source: str, architecture: str, device: torch.device | str) -> nn.Module:
    """The CLIP that ``source`` names: a folder or hub id of transformers or, with an
    ``architecture`` of open_clip's list, a file of its weights. "" is OpenAI's ViT-L/14.

    UserError if it is not there, is damaged or another, or open_clip is not installed.
    """
    load: Callable[[], nn.Module]
    if not architecture:
        folder = find_repo(VIT_L_14, source)

        def load() -> nn.Module:
            return TransformersTowers(load_clip(folder, "cpu"))
    else:
        if not Path(source).is_file():
            raise UserError(
                f"align_architecture={architecture} needs the file of its weights, and "
                f"align_scorer={source or 'none'} names none: fetch it, and name it there"
            )

        def load() -> nn.Module:
            return OpenClipTowers(load_open_clip(architecture, Path(source), "cpu"))

    with torch.device("cpu"):  # on meta, where memory is estimated, nothing can be read
        towers = load()
    return towers.to(device)
