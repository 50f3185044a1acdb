"""Image pipelines: latents of 8x8, two blocks, hidden width 16."""

from __future__ import annotations

from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SchedulerMixin,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tiny_pipelines import encoders, schedulers, tokenizers
from tiny_pipelines.autoencoders import CHANNELS, deep_vae, image_vae, qwen_vae
from tiny_pipelines.encoders import WIDTH
from tiny_pipelines.weights import with_random_weights

HEADS = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2}
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}


def _text_unet(**config: object) -> UNet2DConditionModel:
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    shared = {"down_block_types": blocks[0], "up_block_types": blocks[1], "norm_num_groups": 4}
    return UNet2DConditionModel(**{**UNET, **shared, "attention_head_dim": 4, **config})


def ddpm(seed: int = 0, scheduler: SchedulerMixin | None = None) -> DDPMPipeline:
    """DDPM on 8x8 colour images, without any condition."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(**UNET, **blocks, norm_num_groups=4, attention_head_dim=4)
    scheduler = scheduler or DDPMScheduler(**schedulers.PIXEL_BETAS)
    return with_random_weights(DDPMPipeline(unet, scheduler), seed)


def _stable_diffusion(
    scheduler: SchedulerMixin, seed: int, **unet: object
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=image_vae(),
        text_encoder=encoders.clip_text(),
        tokenizer=tokenizers.clip_tokenizer(),
        unet=_text_unet(cross_attention_dim=WIDTH, **unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return with_random_weights(pipeline, seed)


def sd15(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: predicts eps."""
    return _stable_diffusion(schedulers.sd15_scheduler(), seed)


def sd21(seed: int = 0, scheduler: SchedulerMixin | None = None) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1: by default it predicts v, zero terminal SNR."""
    scheduler = scheduler or schedulers.sd21_scheduler()
    return _stable_diffusion(scheduler, seed, use_linear_projection=True)


def sdxl(
    seed: int = 0, second_width: int = WIDTH, scheduler: SchedulerMixin | None = None
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders, pooled text and the image's size as conditions."""
    unet = _text_unet(
        cross_attention_dim=WIDTH + second_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + second_width,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=image_vae(scale=0.13025),
        text_encoder=encoders.clip_text(),
        text_encoder_2=encoders.clip_text(projected=True, width=second_width),
        tokenizer=tokenizers.clip_tokenizer(),
        tokenizer_2=tokenizers.clip_tokenizer(),
        unet=unet,
        scheduler=scheduler or schedulers.sdxl_scheduler(),
        add_watermarker=False,
    )
    return with_random_weights(pipeline, seed)


def _pixart(sample_size: int, additional_conditions: bool) -> dict[str, object]:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3,  # the conditions on size split the width in three
        attention_head_dim=8,
        num_layers=2,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=sample_size,
        use_additional_conditions=additional_conditions,
    )
    return {
        "tokenizer": tokenizers.t5_tokenizer(),
        "text_encoder": encoders.t5(),
        "vae": image_vae(),
        "transformer": transformer,
        "scheduler": schedulers.pixart_scheduler(),
    }


def pixart_alpha(seed: int = 0, additional_conditions: bool = False) -> PixArtAlphaPipeline:
    """PixArt-alpha: learned variance; ``additional_conditions`` as the 1024 px model has.

    The pipeline passes size and aspect ratio only to a transformer whose sample size is 128.
    """
    parts = _pixart(128 if additional_conditions else 8, additional_conditions)
    return with_random_weights(PixArtAlphaPipeline(**parts), seed)


def pixart_sigma(seed: int = 0) -> PixArtSigmaPipeline:
    """PixArt-sigma: the same network without conditions on size."""
    return with_random_weights(PixArtSigmaPipeline(**_pixart(8, False)), seed)


def dit(seed: int = 0, classes: int = 1000) -> DiTPipeline:
    """DiT: learned variance; the null class is number ``classes``.

    The stock pipeline guides with class 1000 whatever the network, so that with fewer classes it
    runs only at guidance scale 1.
    """
    transformer = DiTTransformer2DModel(
        num_layers=2,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        sample_size=8,
        num_embeds_ada_norm=classes,
        **HEADS,
    )
    return with_random_weights(
        DiTPipeline(transformer, image_vae(), schedulers.dit_scheduler()), seed
    )


def sd3(seed: int = 0, t5: bool = True) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: flow; two CLIP towers, and T5 unless left out.

    A folder without T5 loads only when told ``text_encoder_3=None, tokenizer_3=None``.
    """
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        **HEADS,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=schedulers.shifted_flow(3.0),
        vae=image_vae(scale=1.5305, shift=0.0609),
        text_encoder=encoders.clip_text(projected=True),
        tokenizer=tokenizers.clip_tokenizer(),
        text_encoder_2=encoders.clip_text(projected=True),
        tokenizer_2=tokenizers.clip_tokenizer(),
        text_encoder_3=encoders.t5(2 * WIDTH) if t5 else None,
        tokenizer_3=tokenizers.t5_tokenizer() if t5 else None,
    )
    return with_random_weights(pipeline, seed)


def flux(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """FLUX.1: the dev model reads its guidance scale, the schnell one (``False``) has none."""
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
        **HEADS,
    )
    pipeline = FluxPipeline(
        scheduler=schedulers.flux_scheduler(),
        vae=image_vae(scale=0.3611, shift=0.1159),
        text_encoder=encoders.clip_text(),
        tokenizer=tokenizers.clip_tokenizer(),
        text_encoder_2=encoders.t5(),
        tokenizer_2=tokenizers.t5_tokenizer(),
        transformer=transformer,
    )
    return with_random_weights(pipeline, seed)


def sana(seed: int = 0, euler: bool = False) -> SanaPipeline:
    """Sana: linear attention on deep latents; ``euler`` for the first-order flow scheduler."""
    transformer = SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=WIDTH // 2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
        **HEADS,
    )
    pipeline = SanaPipeline(
        tokenizer=tokenizers.gemma_tokenizer(),
        text_encoder=encoders.gemma2(),
        vae=deep_vae(),
        transformer=transformer,
        scheduler=schedulers.shifted_flow(3.0) if euler else schedulers.sana_scheduler(),
    )
    return with_random_weights(pipeline, seed)


def qwen_image(seed: int = 0) -> QwenImagePipeline:
    """Qwen-Image: two streams, guidance renormalised token by token."""
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        **HEADS,
    )
    pipeline = QwenImagePipeline(
        scheduler=schedulers.qwen_scheduler(),
        vae=qwen_vae(),
        text_encoder=encoders.qwen2_5_vl(),
        tokenizer=tokenizers.qwen_tokenizer(),
        transformer=transformer,
    )
    return with_random_weights(pipeline, seed)


def z_image(seed: int = 0) -> ZImagePipeline:
    """Z-Image: one stream; time runs from noise at 0, and the output is the flow negated.

    Its time embedding is 1024 wide whatever the configuration: most of the network's weights.
    """
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[2, 2, 4],
        axes_lens=[1024, 32, 32],
    )
    pipeline = ZImagePipeline(
        scheduler=schedulers.shifted_flow(3.0),
        vae=image_vae(scale=0.3611, shift=0.1159),
        text_encoder=encoders.qwen3(),
        tokenizer=tokenizers.qwen_tokenizer(),
        transformer=transformer,
    )
    return with_random_weights(pipeline, seed)
