"""Networks in the sizes of published models, on the meta device: from configs, without a weight."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stepdistill.backbones.sd import UNetBackbone
from stepdistill.backbones.sdxl import SDXLBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Backbone, Denoiser, PredictsEps
from stepdistill.schedules import VPSchedule

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# and of stabilityai/stable-diffusion-2-1
SD21: dict[str, Any] = {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
UNETS: dict[str, tuple[dict[str, Any], type[Backbone]]] = {
    "SDXL": (SDXL, SDXLBackbone),
    "SD 2.1": (SD21, UNetBackbone),
}
SDXL_LATENT = (4, 128, 128)  # of 1024 x 1024 pixels
# what one sample of SDXL is told
SDXL_TOLD = {"prompt_embeds": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)}


def teacher_of(name: str) -> Denoiser:
    """The frozen U-Net of ``UNETS[name]`` in bf16."""
    config, backbone = UNETS[name]
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    for parameter in network.parameters():  # .to(dtype) warns, and means it for loaded weights
        parameter.data = parameter.data.bfloat16()
    schedule = VPSchedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return Denoiser(backbone(network), schedule, PredictsEps()).eval().requires_grad_(False)


def sdxl_told(batch: int) -> Conditioning:
    """What ``batch`` samples of SDXL are told, in bf16."""
    given = {
        name: torch.empty(batch, *shape, dtype=torch.bfloat16, device="meta")
        for name, shape in SDXL_TOLD.items()
    }
    return Conditioning(given)


def sdxl_encoders() -> dict[str, nn.Module]:
    """Its two text encoders in bf16 and its autoencoder in float32."""
    small = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
    large = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280}
    with torch.device("meta"):
        first = CLIPTextModel(CLIPTextConfig(**small, num_attention_heads=12, num_hidden_layers=12))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(**large, num_attention_heads=20, num_hidden_layers=32)
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    half = torch.bfloat16
    return {"text_encoder": first.to(half), "text_encoder_2": second.to(half), "vae": vae}
