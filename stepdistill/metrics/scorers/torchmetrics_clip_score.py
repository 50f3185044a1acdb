"""torchmetrics' CLIPScore: 100 times the cosine of OpenAI's ViT-L/14, without a prefix.

Not comparable with DMD2's CLIP score: another network, another scale, other words. torchmetrics'
own class takes no batches from several processes in a fixed order, gives no score an image, and
fails with transformers 5 (its pull request 3428); the numbers here are its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...assets import Asset, find_repo
from ..features import Scorer
from .transformers_clip import RESIZE, cosines, load_clip

FOLDER = Asset(
    "weights of OpenAI's CLIP ViT-L/14",
    "model.safetensors",
    "STEPDISTILL_CLIP_VIT_L_14",
    "openai/clip-vit-large-patch14",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    option="--weights clip-torchmetrics=FOLDER",
)


def torchmetrics_clip_score(folder: str, device: torch.device | str = "cpu") -> Scorer:
    """100 cos(image, prompt), (B,), below 0 where the cosine is: torchmetrics clips the mean alone.

    Prompts are cut at the text length as torchmetrics cuts them, the end token with the rest.
    """
    clip = load_clip(folder, device)

    def network(inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        words = clip.tokenizer(list(prompts), return_tensors="pt", padding=True)
        tokens, mask = (words[k][:, : clip.positions] for k in ("input_ids", "attention_mask"))
        return 100 * cosines(clip.image_embeddings(inputs), clip.text_embeddings(tokens, mask))

    name = "clip_score_torchmetrics"
    return Scorer(name, clip.sha256, clip.prepare, network, resize=RESIZE)


def clip_torchmetrics(weights: str | None = None, device: torch.device | str = "cpu") -> Scorer:
    """Of torchmetrics' default network. UserError if its folder is not there, or is another."""
    return torchmetrics_clip_score(find_repo(FOLDER, weights), device)
