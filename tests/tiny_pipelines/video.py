"""Video pipelines: five to nine frames, latents of a few pixels, two blocks."""

from __future__ import annotations

from diffusers import (
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessor

from tiny_pipelines import encoders, schedulers, tokenizers
from tiny_pipelines.autoencoders import CHANNELS, cogvideox_vae, ltx_vae, wan_vae
from tiny_pipelines.encoders import WIDTH
from tiny_pipelines.weights import with_random_weights

HEADS = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2}


def _wan(shift: float, euler: bool) -> dict[str, object]:
    flow = schedulers.shifted_flow(shift) if euler else schedulers.wan_scheduler(shift)
    return {
        "tokenizer": tokenizers.t5_tokenizer(),
        "text_encoder": encoders.umt5(),
        "vae": wan_vae(),
        "scheduler": flow,
    }


def _wan_transformer(**config: object) -> WanTransformer3DModel:
    sizes = {"in_channels": CHANNELS, "out_channels": CHANNELS, "text_dim": WIDTH}
    rest = {"freq_dim": WIDTH, "ffn_dim": 2 * WIDTH, "num_layers": 2, "rope_max_seq_len": 32}
    return WanTransformer3DModel(**{**HEADS, **sizes, **rest, **config})


def wan_t2v(seed: int = 0, euler: bool = False) -> WanPipeline:
    """Wan 2.1, text to video, at the 480p shift; ``euler`` for the first-order scheduler."""
    pipeline = WanPipeline(transformer=_wan_transformer(), **_wan(3.0, euler))
    return with_random_weights(pipeline, seed)


def wan22_t2v(seed: int = 0, euler: bool = False) -> WanPipeline:
    """Wan 2.2, text to video: ``transformer`` above timestep 875, ``transformer_2`` below."""
    experts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return with_random_weights(
        WanPipeline(boundary_ratio=0.875, **experts, **_wan(3.0, euler)), seed
    )


def wan_i2v(seed: int = 0, euler: bool = False) -> WanImageToVideoPipeline:
    """Wan 2.1, image to video: the first frame as latents, a mask, and CLIP's features."""
    transformer = _wan_transformer(
        in_channels=CHANNELS + 4 + CHANNELS, image_dim=WIDTH, added_kv_proj_dim=WIDTH
    )
    pipeline = WanImageToVideoPipeline(
        transformer=transformer,
        image_encoder=encoders.clip_vision(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        **_wan(3.0, euler),
    )
    return with_random_weights(pipeline, seed)


def wan22_i2v(seed: int = 0, euler: bool = False) -> WanImageToVideoPipeline:
    """Wan 2.2, image to video: two experts that change at timestep 900, no image encoder."""
    experts = {
        name: _wan_transformer(in_channels=CHANNELS + 4 + CHANNELS)
        for name in ("transformer", "transformer_2")
    }
    return with_random_weights(
        WanImageToVideoPipeline(boundary_ratio=0.9, **experts, **_wan(5.0, euler)), seed
    )


def cogvideox(seed: int = 0, rotary: bool = False) -> CogVideoXPipeline:
    """CogVideoX: predicts v; sincos positions as the 2b model, ``rotary`` ones as the 5b."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=WIDTH,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        use_rotary_positional_embeddings=rotary,
    )
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizers.t5_tokenizer(),
        text_encoder=encoders.t5(),
        vae=cogvideox_vae(),
        transformer=transformer,
        scheduler=schedulers.cogvideox_scheduler(),
    )
    return with_random_weights(pipeline, seed)


def ltx(seed: int = 0) -> LTXPipeline:
    """LTX-Video: flow on tokens, the shift chosen by their number."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        cross_attention_dim=WIDTH,
        num_layers=2,
        caption_channels=WIDTH,
        **HEADS,
    )
    pipeline = LTXPipeline(
        scheduler=schedulers.ltx_scheduler(),
        vae=ltx_vae(),
        text_encoder=encoders.t5(),
        tokenizer=tokenizers.t5_tokenizer(),
        transformer=transformer,
    )
    return with_random_weights(pipeline, seed)
