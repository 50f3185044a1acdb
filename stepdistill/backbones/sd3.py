"""Stable Diffusion 3 and 3.5: a joint-attention transformer, rectified flow (Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Backbone
from ..negative_attention.conditions import attention_arguments
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size, log_shift, spatial_factor


class SD3Backbone(Backbone):
    """SD3Transformer2DModel; the image stream of its middle block is tapped."""

    network: SD3Transformer2DModel

    def __init__(self, network: SD3Transformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2], place=1)
        last = f"transformer_blocks.{len(network.transformer_blocks) - 1}"
        self.unread = (f"{last}.attn.add_q_proj", f"{last}.attn.norm_added_q")

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["text_embeds"],
            joint_attention_kwargs=attention_arguments(self.network, cond),
            return_dict=False,
        )[0]
        return output


class StableDiffusion3(LatentFamily):
    """StableDiffusion3Pipeline."""

    card = FamilyCard(
        name="sd3",
        task="text-to-image",
        pipeline="StableDiffusion3Pipeline",
        network="SD3Transformer2DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = SD3Backbone
    max_tokens = 512
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    passes_generator = False

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        config = pipeline.transformer.config
        return (config.in_channels, *latent_size(pipeline, options, config.sample_size))

    def mu(self, pipeline: Any, shape: tuple[int, ...]) -> float | None:
        patch = pipeline.transformer.config.patch_size
        return log_shift(pipeline.scheduler, shape[-2] // patch * (shape[-1] // patch))

    def takes_size(self, teacher: Teacher, height: int, width: int) -> bool:
        """Its table of positions has an end."""
        config = teacher.pipeline.transformer.config
        longest = config.pos_embed_max_size * config.patch_size * spatial_factor(teacher.pipeline)
        return super().takes_size(teacher, height, width) and max(height, width) <= longest

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, _, pooled, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=encoder_device(teacher.pipeline),
            do_classifier_free_guidance=False,
            **self.tokens_call(teacher),
        )
        return Conditioning({"prompt_embeds": embeds, "text_embeds": pooled})

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [""])
