"""Sana: a linear-attention transformer on deeply compressed latents, told by Gemma 2; flow."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Backbone
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size


class SanaBackbone(Backbone):
    """SanaTransformer2DModel; its middle block is tapped."""

    network: SanaTransformer2DModel

    def __init__(self, network: SanaTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            x,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_mask"],
            timestep=timestep * self.network.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]


class Sana(LatentFamily):
    """SanaPipeline."""

    card = FamilyCard(
        name="sana",
        task="text-to-image",
        pipeline="SanaPipeline",
        network="SanaTransformer2DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = SanaBackbone
    max_tokens = 512  # its pipeline sets no bound, and takes 300 by default
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    student_call: ClassVar[dict[str, Any]] = {
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
    }

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        config = pipeline.transformer.config
        return (config.in_channels, *latent_size(pipeline, options, config.sample_size))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        return self._encode(teacher, prompts)[0]

    def null(self, teacher: Teacher) -> Conditioning:
        """The empty prompt, which the pipeline encodes without its instruction."""
        return self._encode(teacher, [""])[1]

    def _encode(self, teacher: Teacher, prompts: Sequence[Any]) -> tuple[Conditioning, ...]:
        """(conditioning, null conditioning), as the pipeline's default call makes them."""
        defaults = inspect.signature(SanaPipeline.__call__).parameters
        embeds, mask, null_embeds, null_mask = teacher.pipeline.encode_prompt(
            list(prompts),
            device=encoder_device(teacher.pipeline),
            complex_human_instruction=defaults["complex_human_instruction"].default,
            **self.tokens_call(teacher),
        )
        return (
            Conditioning({"prompt_embeds": embeds, "prompt_mask": mask}),
            Conditioning({"prompt_embeds": null_embeds, "prompt_mask": null_mask}),
        )
