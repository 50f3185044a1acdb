"""Stable Diffusion XL: two text encoders, pooled text and the image's size as conditions; eps or v.

Time ids are (original height, width, crop top, left, target height, width), Podell et al. 2023,
arXiv:2307.01952, section 2.2: here an uncropped image of the size that is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..data.buckets import Cropped
from ..errors import UserError
from ..negative_attention.conditions import attention_arguments
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import encoder_device
from .sd import StableDiffusion, UNetBackbone, no_guidance_embedding


class SDXLBackbone(UNetBackbone):
    """UNet2DConditionModel with SDXL's added conditions."""

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=cond["prompt_embeds"],
            added_cond_kwargs={"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]},
            timestep_cond=no_guidance_embedding(self.network, x),
            cross_attention_kwargs=attention_arguments(self.network, cond),
            return_dict=False,
        )[0]
        return output


class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline, the base model."""

    card = FamilyCard(
        name="sdxl",
        task="text-to-image",
        pipeline="StableDiffusionXLPipeline",
        network="UNet2DConditionModel",
        prediction="eps, v",
        scheduler="LCMScheduler",
    )
    backbone = SDXLBackbone

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        if pipeline.config.get("requires_aesthetics_score"):
            raise UserError("this is an SDXL refiner, which is no text-to-image teacher by itself")
        return super().sample_shape(pipeline, options)

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, _, pooled, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            device=encoder_device(teacher.pipeline),
            do_classifier_free_guidance=False,
        )
        height, width = self.pixel_size(teacher)
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype)
        rows = time_ids.to(pooled.device).expand(len(prompts), -1)
        return Conditioning({"prompt_embeds": embeds, "text_embeds": pooled, "time_ids": rows})

    def size_cond(self, teacher: Teacher, images: Sequence[Cropped]) -> Conditioning:
        """The time ids of each image's own size and crop."""
        return Conditioning(
            {"time_ids": torch.tensor([image.time_ids for image in images]).float()}
        )

    def null(self, teacher: Teacher) -> Conditioning:
        """The pipeline's own, zeros where its config says so; the sizes stay the sample's."""
        _, embeds, _, pooled = teacher.pipeline.encode_prompt(
            [""], device=encoder_device(teacher.pipeline), do_classifier_free_guidance=True
        )
        return Conditioning({"prompt_embeds": embeds, "text_embeds": pooled})
