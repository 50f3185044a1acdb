"""CogVideoX: a text-to-video transformer; v on a VP schedule at zero terminal SNR.

x0 is (frames, channels, height, width), as its pipeline keeps latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Backbone
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, frames_call, latent_frames, spatial_factor


class CogVideoXBackbone(Backbone):
    """CogVideoXTransformer3DModel; the video stream of its middle block is tapped."""

    network: CogVideoXTransformer3DModel

    def __init__(self, network: CogVideoXTransformer3DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            hidden_states=x,
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=timestep,
            image_rotary_emb=self._positions(x),
            return_dict=False,
        )[0]
        return output

    def _positions(self, x: Tensor) -> Any:
        """The stock pipeline's rotary embedding of x's grid, where the network has one."""
        if not self.network.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = x.shape[1], *x.shape[-2:]
        in_latents = SimpleNamespace(vae_scale_factor_spatial=1, transformer=self.network)
        return CogVideoXPipeline._prepare_rotary_positional_embeddings(
            in_latents, height, width, frames, x.device
        )


class CogVideoX(LatentFamily):
    """CogVideoXPipeline."""

    card = FamilyCard(
        name="cogvideox",
        task="text-to-video",
        pipeline="CogVideoXPipeline",
        network="CogVideoXTransformer3DModel",
        prediction="v",
        scheduler="LCMScheduler",
    )
    backbone = CogVideoXBackbone
    max_tokens = 226  # the network learned so many positions
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        config, factor = pipeline.transformer.config, spatial_factor(pipeline)
        height = config.sample_height if options.height is None else options.height // factor
        width = config.sample_width if options.width is None else options.width // factor
        frames = latent_frames(pipeline, options, config.sample_frames)
        return (frames, config.in_channels, height, width)

    def size_call(self, teacher: Teacher) -> dict[str, Any]:
        return {**super().size_call(teacher), **frames_call(teacher, teacher.sample_shape[0])}

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=encoder_device(teacher.pipeline),
            **self.tokens_call(teacher),
        )
        return Conditioning({"prompt_embeds": embeds})

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [""])

    def decode(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return super().decode(teacher, x0.transpose(1, 2))

    def encode_images(self, teacher: Teacher, pixels: Tensor) -> Tensor:
        return super().encode_images(teacher, pixels).transpose(1, 2)
