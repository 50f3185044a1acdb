"""CLIPs of a few thousand numbers, as open_clip and as transformers save them; what to score."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from stepdistill.metrics.features import Pixels

NAME = "tiny-clip"
SIDE = 32
SIZES = ((48, 48), (64, 40), (31, 57), (300, 300), (SIDE, SIDE))
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = (
    "a red bicycle",
    "Two DOGS &amp; a cafÃ©, it's raining  ",
    "",
    "one two three four five six seven eight nine ten " * 12,  # 120 words
    "'s morning",
)


def smooth(size: tuple[int, int], seed: int) -> Pixels:
    """Smooth colours and some noise, of height and width ``size``."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    colours = np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR), float)
    pixels: Pixels = (colours + random.normal(0, 20, colours.shape)).clip(0, 255).astype(np.uint8)
    return pixels


def pictures() -> list[Pixels]:
    """One of each of SIZES."""
    return [smooth(size, seed) for seed, size in enumerate(SIZES)]


def open_clip_file(folder: Path) -> Path:
    """Random weights of the architecture NAME, which open_clip then knows."""
    (folder / f"{NAME}.json").write_text(json.dumps(TOWERS))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**TOWERS).state_dict(), folder / "clip.bin")
    return folder / "clip.bin"


def transformers_folder(folder: Path) -> Path:
    """A random CLIP as ``save_pretrained`` writes it, with CLIP's vocabulary and sizes, as OpenAI's
    says its configuration (the end of a text by its highest token)."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "projection_dim": 16}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, **heads, **ends, "vocab_size": 49408},
        vision_config={**tower, **heads, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the library begins too near to 0 to tell texts apart
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    return folder


def tokenizer() -> CLIPTokenizer:
    """CLIP's, from the vocabulary in open_clip's package."""
    vocabulary = dict(open_clip.SimpleTokenizer().encoder)
    for old, new in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        vocabulary[new] = vocabulary.pop(old)
    file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def dinov2_folder(place: Path, size: int, layers: int) -> Path:
    """A random DINOv2 of the published kind, with the positions of a 37x37 grid."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
    )
    network = Dinov2Model(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(place)
    return place
