"""Pixel U-Nets on a VP schedule, unconditional, as DDPMPipeline has them (Ho et al. 2020); eps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..conditioning import Conditioning
from ..errors import UserError
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily
from .pixel import PixelBackbone


class DDPMPixels(LatentFamily):
    """DDPMPipeline: its samples are pixels, there is no autoencoder."""

    card = FamilyCard(
        name="ddpm-pixels",
        task="unconditional",
        pipeline="DDPMPipeline",
        network="UNet2DModel",
        prediction="eps, v",
        scheduler="LCMScheduler",
    )
    component = "unet"
    backbone = PixelBackbone
    lora_targets = ("conv1", "conv2", "time_emb_proj", "to_q", "to_k", "to_v", "to_out.0")
    output_type = "np"

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        if options.height is not None or options.width is not None:
            raise UserError("the stock DDPM pipeline samples one size: leave height and width out")
        config = pipeline.unet.config
        if config.num_class_embeds is not None:
            raise UserError("the stock DDPM pipeline gives its network no class labels")
        size = config.sample_size
        return (config.in_channels, *((size, size) if isinstance(size, int) else size))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        return Conditioning.empty(len(prompts))

    def null(self, teacher: Teacher) -> None:
        return None

    def examples(self, teacher: Teacher, count: int) -> list[Any]:
        return [None] * count

    def told(self, prompts: Sequence[Any]) -> dict[str, Any]:
        return {"batch_size": len(prompts)}

    def settings(self, teacher: Teacher) -> dict[str, Any]:
        return {}

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        return {}

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def decode(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return x0

    def encode_images(self, teacher: Teacher, pixels: Tensor) -> Tensor:
        return pixels
