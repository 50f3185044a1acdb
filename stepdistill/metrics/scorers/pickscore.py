"""PickScore (Kirstain et al. 2023): a ViT-H-14 fine-tuned on people's choices between images.

As the authors' repository scores (yuvalkirstain/PickScore, README): prompts cut to 77 tokens, the
cosine times the learned scale. The README's processor, of laion/CLIP-ViT-H-14-laion2B-s32B-b79K,
lies beside the published weights, and is taken from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...assets import Asset, find_repo
from ..features import Scorer
from .transformers_clip import RESIZE, cosines, load_clip

FOLDER = Asset(
    "weights of PickScore",
    "model.safetensors",
    "STEPDISTILL_PICKSCORE",
    "yuvalkirstain/PickScore_v1",
    "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
    option="--weights pickscore=FOLDER",
)


def pick_score(folder: str, device: torch.device | str = "cpu") -> Scorer:
    """exp(logit_scale) cos(image, prompt), (B,); the published network's scale is about 100."""
    clip = load_clip(folder, device)

    def network(inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        words = clip.tokenizer(
            list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=77
        )
        texts = clip.text_embeddings(words["input_ids"], words["attention_mask"])
        scale: Tensor = clip.model.logit_scale.exp()
        return scale * cosines(clip.image_embeddings(inputs), texts)

    return Scorer("pickscore", clip.sha256, clip.prepare, network, resize=RESIZE)


def pickscore(weights: str | None = None, device: torch.device | str = "cpu") -> Scorer:
    """The published v1. UserError if its folder is not there, or is another."""
    return pick_score(find_repo(FOLDER, weights), device)
