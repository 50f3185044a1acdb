"""Autoencoders that shrink images by two and videos by four, with latents of four channels."""

from __future__ import annotations

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)

CHANNELS = 4
MEAN = [-0.8, -0.7, 0.1, 0.4]  # of Wan's and Qwen-Image's latents, each its own
STD = [2.8, 1.5, 2.3, 1.2]


def image_vae(scale: float = 0.18215, shift: float | None = None) -> AutoencoderKL:
    """Stable Diffusion's autoencoder; with a ``shift`` the form of SD3, FLUX and Z-Image."""
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def deep_vae() -> AutoencoderDC:
    """The deep-compression autoencoder of Sana, here by a factor of four."""
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(4, 4, 8),
        decoder_block_out_channels=(4, 4, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (3,)),
        decoder_qkv_multiscales=((), (), (3,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """Qwen-Image's video autoencoder, used on single frames."""
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=MEAN,
        latents_std=STD,
    )


def wan_vae() -> AutoencoderKLWan:
    """Wan's causal autoencoder: four in space, four in time."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=MEAN,
        latents_std=STD,
        scale_factor_spatial=4,
    )


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    """CogVideoX's causal autoencoder: four in space, four in time."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(4, 4, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=16,
        sample_width=16,
    )


def ltx_vae() -> AutoencoderKLLTXVideo:
    """LTX's autoencoder: patches, then one halving in space and time."""
    return AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=4,
    )
