"""Text and image encoders of two layers, as wide as the tiny tokenizers need."""

from __future__ import annotations

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2Model,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny_pipelines.tokenizers import (
    clip_tokenizer,
    gemma_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)

WIDTH = 16


def clip_text(projected: bool = False, width: int = WIDTH) -> PreTrainedModel:
    """CLIP's text tower; ``projected`` adds the pooled embedding's projection."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def clip_vision() -> CLIPVisionModel:
    """CLIP's image tower on 16x16 images in four patches."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModel(config)


def t5(width: int = WIDTH) -> T5EncoderModel:
    """T5 v1.1's encoder."""
    return T5EncoderModel(T5Config(**_t5_sizes(width)))


def umt5() -> UMT5EncoderModel:
    """UMT5's encoder: T5 with a position bias in every layer."""
    return UMT5EncoderModel(UMT5Config(**_t5_sizes(WIDTH)))


def _t5_sizes(width: int) -> dict[str, object]:
    return {
        "vocab_size": len(t5_tokenizer()),
        "d_model": width,
        "d_kv": 4,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    }


def gemma2() -> Gemma2Model:
    """Gemma 2, as Sana reads prompts."""
    config = Gemma2Config(vocab_size=len(gemma_tokenizer()), head_dim=8, **_decoder_sizes())
    return Gemma2Model(config)


def qwen3() -> Qwen3Model:
    """Qwen3, as Z-Image reads prompts."""
    return Qwen3Model(Qwen3Config(vocab_size=len(qwen_tokenizer()), head_dim=8, **_decoder_sizes()))


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with its vision tower, which a text-to-image pipeline never calls."""
    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [1, 1, 2],
        },
        **_decoder_sizes(),
    }
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config)


def _decoder_sizes() -> dict[str, object]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
