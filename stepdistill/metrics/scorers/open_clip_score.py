"""DMD2's CLIP score: open_clip's ViT-g-14 (laion2b_s12b_b42k), cosines, a prefix to each prompt.

Hessel et al. 2021 (CLIPScore) say "A photo depicts " before each caption; Yin et al. 2024 (DMD2,
``main/coco_eval/coco_evaluator.py``) take the plain cosine of the two embeddings, neither times 100
nor clipped at 0, of images brought to 256x256 first. Not comparable with torchmetrics' CLIPScore.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ...assets import Asset, find
from ..features import Pixels, Scorer, digest
from .checkpoints import fill, optional, read_weights

PREFIX = "A photo depicts "
SIDE = 256
WEIGHTS = Asset(
    "weights of open_clip's ViT-g-14",
    "open_clip_pytorch_model.bin",
    "STEPDISTILL_CLIP_VIT_G_14",
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    "6aac683f899159946bc4ca15228bb7016f3cbb1a2c51f365cba0b23923f344da",
    option="--weights clip-vit-g-14=FILE",
)


@dataclass(frozen=True)
class OpenClip:
    """A CLIP of open_clip: the network, its own preparation of an image, its tokens (B, 77)."""

    network: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]


def load_open_clip(architecture: str, file: Path, device: torch.device | str) -> OpenClip:
    """The ``architecture`` of open_clip's list with the weights of ``file``, in float32, to score.

    Tokens come from the package's own vocabulary, cut at the text length. Nothing is downloaded.
    UserError if the package is missing, or the file is damaged or of another network.
    """
    open_clip = optional("open_clip")
    state = read_weights(file)
    network = open_clip.CLIP(**open_clip.get_model_config(architecture))
    fill(network, state, file)
    network = network.to(device).eval().requires_grad_(False)
    preprocess = open_clip.image_transform(network.visual.image_size, is_train=False)
    return OpenClip(network, preprocess, open_clip.get_tokenizer(architecture))


def square(pixels: Pixels) -> Image.Image:
    """The largest square in the middle, at 256x256 by PIL's LANCZOS filter (256 stays as it is)."""
    image = Image.fromarray(pixels)
    cropped = center_crop(image, min(image.size))
    resized: Image.Image = cropped.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return resized


def open_clip_score(architecture: str, file: Path, device: torch.device | str = "cpu") -> Scorer:
    """Cosine of the image and "A photo depicts " + prompt, in float32."""
    clip = load_open_clip(architecture, file, device)

    @torch.no_grad()
    def network(inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = clip.tokenize([PREFIX + prompt for prompt in prompts]).to(device)
        image = clip.network.encode_image(inputs.to(device))
        return F.cosine_similarity(image, clip.network.encode_text(tokens), dim=1)

    words = "largest middle square, 256 LANCZOS, 224 bicubic (PIL)"
    prepare = partial(_prepare, preprocess=clip.preprocess)
    return Scorer("clip_score_vit_g_14", digest(file), prepare, network, resize=words)


def clip_vit_g_14(weights: str | None = None, device: torch.device | str = "cpu") -> Scorer:
    """The published ViT-g-14. UserError if the weights are not there, or are others."""
    return open_clip_score("ViT-g-14", find(WEIGHTS, weights), device)


def _prepare(pixels: Pixels, preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
    return preprocess(square(pixels))
