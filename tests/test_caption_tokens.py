"""The captions' tokenizer and text encoder, as diffusers' own pipelines load and use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stepdistill.data.caption_tokens import MAX_TOKENS, caption_tokenizer, tokens
from stepdistill.data.captioned_digits import CaptionedDigits, evaluation_prompts
from stepdistill.data.captions import vocabulary
from trainers.text_encoder import Options, build
from trainers.text_encoder import main as train

TEXTS = ["a large red seven at the top", "", "a blue five to the right of a three"]
START, END, UNKNOWN = 0, 1, 2


@pytest.fixture
def encoder() -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    return build(Options("unused"), caption_tokenizer()).eval()


def test_every_word_is_one_token() -> None:
    """Between start and end, padded with END to 16; nothing of a caption is unknown or cut."""
    tokenizer = caption_tokenizer()
    texts = [prompt.text for prompt in evaluation_prompts()]
    for text, numbers in zip(texts, tokens(tokenizer, texts).tolist(), strict=True):
        words = text.split()
        assert numbers[0] == START
        assert tokenizer.convert_ids_to_tokens(numbers[1 : len(words) + 1]) == words
        assert set(numbers[len(words) + 1 :]) == {END}
        assert len(numbers) == MAX_TOKENS
    assert len(tokenizer) == len(vocabulary()) + 3


def test_other_words_are_unknown() -> None:
    """However near to one of ours; case and spaces do not matter, and long texts are cut."""
    tokenizer = caption_tokenizer()
    a, red = tokenizer.convert_tokens_to_ids(["a", "red"])
    assert tokens(tokenizer, ["seventeen reds"])[0, 1:14].eq(UNKNOWN).all()
    assert tokens(tokenizer, [" A  cat,\nred "])[0, :9].tolist() == [
        *(START, a),
        *[UNKNOWN] * 4,
        *(red, END, END),
    ]
    assert tokens(tokenizer, ["red " * 50])[0].tolist() == [START, *[red] * 14, END]


def test_tokenizer_survives_a_folder(tmp_path: Path) -> None:
    """As a CLIPTokenizer, with its length and its special tokens."""
    caption_tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "seventeen", "A Cat"]
    assert loaded.model_max_length == MAX_TOKENS
    assert torch.equal(tokens(loaded, texts), tokens(caption_tokenizer(), texts))


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, sample_size=32)


def test_stable_diffusion_encodes_captions(encoder: Any, tmp_path: Path) -> None:
    """A saved pipeline loads tokenizer and encoder, and reads the last states of our tokens."""
    encoder.save_pretrained(tmp_path / "both")
    text_encoder = CLIPTextModel.from_pretrained(tmp_path / "both")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=64,
    )
    StableDiffusionPipeline(
        vae=small_vae(),
        text_encoder=text_encoder,
        tokenizer=caption_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd")
    embeds, null = pipeline.encode_prompt(TEXTS, "cpu", 1, do_classifier_free_guidance=True)
    expected = encoder(tokens(caption_tokenizer(), TEXTS)).last_hidden_state
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    assert embeds.shape == (3, MAX_TOKENS, 64)
    assert torch.allclose(embeds, expected, atol=1e-5)
    assert torch.allclose(null[0], expected[1], atol=1e-5)
    assert not torch.allclose(embeds[0], embeds[2], atol=1e-2)


def test_stable_diffusion_3_encodes_captions(encoder: Any, tmp_path: Path) -> None:
    """Twice the last but one states side by side, and twice the pooled one.

    Without a T5 encoder, ``max_sequence_length`` tokens of zeros follow: none of them here.
    """
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=16,
        pooled_projection_dim=128,
        out_channels=4,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=small_vae(),
        text_encoder=encoder,
        tokenizer=caption_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=caption_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(tmp_path / "sd3")
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "sd3", **without_t5)
    embeds, _, pooled, _ = pipeline.encode_prompt(
        TEXTS, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=0
    )
    states = encoder(tokens(caption_tokenizer(), TEXTS), output_hidden_states=True)
    twice = torch.cat([states.hidden_states[-2]] * 2, dim=-1)
    assert torch.allclose(embeds, twice, atol=1e-5)
    assert torch.allclose(pooled, torch.cat([states.text_embeds] * 2, dim=-1), atol=1e-5)


def test_pooled_state_is_at_the_first_end(encoder: Any) -> None:
    """The one state that has read all words and no padding."""
    numbers = tokens(caption_tokenizer(), ["a red three", "a red three above a blue four"])
    states = encoder(numbers)
    at_end = states.last_hidden_state[[0, 1], [4, 8]]
    assert numbers[[0, 1], [4, 8]].tolist() == [END, END]
    assert torch.allclose(states.text_embeds, encoder.text_projection(at_end), atol=1e-6)


@pytest.mark.slow
def test_training_writes_what_pipelines_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few iterations lower the loss and leave both folders and the record."""
    monkeypatch.setattr(CaptionedDigits, "__len__", lambda data: min(data.count, 500))
    options = ("--max_steps=40", "--lr_warmup=1", "--lr_decay=1", "--log_every=1")
    train([f"--output={tmp_path}", "--batch_size=32", "--test_captions=200", *options])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["generator/loss"] < lines[0]["generator/loss"] - 2
    loaded = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder")
    stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert loaded.dtype == torch.float32
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")) == loaded.config.vocab_size
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["read_right"]["pooled"]["number"] > 0.9
