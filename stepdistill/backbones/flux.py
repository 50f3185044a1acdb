"""Flux: a rectified-flow transformer on packed latents, with guidance as one of its inputs.

FLUX.1-dev is distilled from guidance: it takes the scale as a number, and has no null condition.
Its students keep the pipeline's default scale, 3.5, as what they are conditioned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..denoisers import Backbone, Denoises, Prediction
from ..negative_attention.conditions import attention_arguments
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size, log_shift
from .packed import pack, unpack

DEFAULT_GUIDANCE = 3.5  # of FluxPipeline's call


class FluxBackbone(Backbone):
    """FluxTransformer2DModel; the image stream of its middle joint block is tapped."""

    network: FluxTransformer2DModel

    def __init__(self, network: FluxTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2], place=1)

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        height, width = x.shape[-2:]
        embeds = cond["prompt_embeds"]
        output: Tensor = self.network(
            hidden_states=pack(x),
            timestep=timestep / 1000,
            guidance=cond.get("guidance"),
            pooled_projections=cond["text_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                len(x), height // 2, width // 2, x.device, x.dtype
            ),
            joint_attention_kwargs=attention_arguments(self.network, cond),
            return_dict=False,
        )[0]
        return unpack(output, height, width)


class EmbeddedGuidance(nn.Module):
    """A denoiser that is told another guidance scale."""

    def __init__(self, denoiser: Denoises, guidance_scale: float | Tensor) -> None:
        super().__init__()
        self.denoiser, self.guidance_scale = denoiser, guidance_scale

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        scale = torch.as_tensor(self.guidance_scale).to(cond["guidance"]).expand(len(x_t))
        told = cond.replace(Conditioning({"guidance": scale}))
        prediction: Prediction = self.denoiser(x_t, t, told, features=features)
        return prediction


class Flux(LatentFamily):
    """FluxPipeline."""

    card = FamilyCard(
        name="flux",
        task="text-to-image",
        pipeline="FluxPipeline",
        network="FluxTransformer2DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = FluxBackbone
    max_tokens = 512
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    student_call: ClassVar[dict[str, Any]] = {"guidance_scale": DEFAULT_GUIDANCE}
    gives_sigmas = True
    passes_generator = False

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        channels = pipeline.transformer.config.in_channels // 4
        return (channels, *latent_size(pipeline, options, pipeline.default_sample_size))

    def mu(self, pipeline: Any, shape: tuple[int, ...]) -> float | None:
        return log_shift(pipeline.scheduler, shape[-2] // 2 * (shape[-1] // 2))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, pooled, _ = teacher.pipeline.encode_prompt(
            list(prompts), device=encoder_device(teacher.pipeline), **self.tokens_call(teacher)
        )
        cond = {"prompt_embeds": embeds, "text_embeds": pooled}
        if teacher.pipeline.transformer.config.guidance_embeds:
            cond["guidance"] = torch.full((len(prompts),), DEFAULT_GUIDANCE)
        return Conditioning(cond)

    def null(self, teacher: Teacher) -> Conditioning | None:
        return None

    def guide(
        self, teacher: Teacher, denoiser: Denoises, guidance_scale: float | Tensor
    ) -> Denoises:
        off = isinstance(guidance_scale, float | int) and guidance_scale == 1
        if not off and teacher.pipeline.transformer.config.guidance_embeds:
            return EmbeddedGuidance(denoiser, guidance_scale)
        return super().guide(teacher, denoiser, guidance_scale)

    def told_guidance(self, pipeline: Any) -> float | None:
        return DEFAULT_GUIDANCE if pipeline.transformer.config.guidance_embeds else None

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": DEFAULT_GUIDANCE if guidance_scale == 1 else guidance_scale}

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return pack(x0)

    def stock_noise(self, teacher: Teacher, count: int, generator: torch.Generator) -> Tensor:
        channels, height, width = teacher.sample_shape
        tokens = torch.randn(count, height * width // 4, 4 * channels, generator=generator)
        return unpack(tokens, height, width)
