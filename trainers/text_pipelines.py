"""The two forms that a text-to-image teacher of the captioned digits has, before training."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


@dataclass(frozen=True)
class Parts:
    """What a pipeline is put together from."""

    vae: str = "runs/autoencoder/vae"  # AutoencoderKL
    text: str = "runs/text-encoder"  # the folder of text_encoder/ and tokenizer/
    width: int = 32  # of the U-Net's first level, or of each of the transformer's four heads
    layers: int = 1  # in a level of the U-Net, or of the transformer


def unet_pipeline(parts: Parts) -> StableDiffusionPipeline:
    """Stable Diffusion in small, which hears its prompt from the second level on.

    It predicts v at zero terminal SNR (Lin et al. 2023), so that one step starts from pure noise.
    """
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(parts.width, 2 * parts.width),
        layers_per_block=parts.layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(parts.vae).float(),
        CLIPTextModel.from_pretrained(f"{parts.text}/text_encoder"),
        CLIPTokenizer.from_pretrained(f"{parts.text}/tokenizer"),
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow_pipeline(parts: Parts) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 in small: both its CLIP encoders are the one there is.

    The pipeline does not load without a T5. Here it is random and frozen, and its one token is the
    end of the text, whatever the prompt.
    """
    text = [CLIPTextModelWithProjection.from_pretrained(f"{parts.text}/text_encoder") for _ in "12"]
    tokenizers = [CLIPTokenizer.from_pretrained(f"{parts.text}/tokenizer") for _ in "12"]
    told = sum(encoder.config.projection_dim for encoder in text)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=parts.layers,
        num_attention_heads=4,
        attention_head_dim=parts.width,
        caption_projection_dim=4 * parts.width,
        joint_attention_dim=told,
        pooled_projection_dim=told,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        AutoencoderKL.from_pretrained(parts.vae).float(),
        *(text[0], tokenizers[0], text[1], tokenizers[1]),
        *silent_t5(told),
    )


def silent_t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder of a few thousand weights that knows no word."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=special, extra_ids=0, model_max_length=512)
    sizes = {"d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    config = T5Config(vocab_size=3, d_model=width, feed_forward_proj="gated-gelu", **sizes)
    return T5EncoderModel(config).half().float(), tokenizer
