"""Z-Image: a single-stream transformer told by Qwen3; flow, negated, its time running upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from ..conditioning import Conditioning, padded
from ..denoisers import Backbone
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size, log_shift

MAX_TOKENS = 512  # of ZImagePipeline's call
SIZE = 1024  # pixels a side of ZImagePipeline's call


class ZImageBackbone(Backbone):
    """ZImageTransformer2DModel, which takes lists; its middle layer is tapped."""

    network: ZImageTransformer2DModel

    def __init__(self, network: ZImageTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.layers[len(network.layers) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        lengths = lengths_of(cond)
        embeds = [row[:n] for row, n in zip(cond["prompt_embeds"], lengths, strict=True)]
        images = list(x.unsqueeze(2).unbind())
        output = self.network(images, 1 - timestep / 1000, embeds, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)


def lengths_of(cond: Conditioning) -> list[int]:
    """The tokens of each prompt; as many as there may be where there are no data to read."""
    lengths, embeds = cond["prompt_lengths"], cond["prompt_embeds"]
    found: list[int] = [embeds.shape[1]] * len(embeds) if lengths.is_meta else lengths.tolist()
    return found


class ZImage(LatentFamily):
    """ZImagePipeline."""

    card = FamilyCard(
        name="z-image",
        task="text-to-image",
        pipeline="ZImagePipeline",
        network="ZImageTransformer2DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = ZImageBackbone
    max_tokens = MAX_TOKENS
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")
    student_call: ClassVar[dict[str, Any]] = {"guidance_scale": 0.0}
    gives_sigmas = True
    passes_generator = False

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        default = SIZE // pipeline.vae_scale_factor
        return (pipeline.transformer.in_channels, *latent_size(pipeline, options, default))

    def mu(self, pipeline: Any, shape: tuple[int, ...]) -> float | None:
        return log_shift(pipeline.scheduler, shape[-2] // 2 * (shape[-1] // 2))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        """Padded to ``max_tokens``, with the number of tokens of each."""
        tokens = teacher.options.max_tokens or MAX_TOKENS
        found, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            device=encoder_device(teacher.pipeline),
            do_classifier_free_guidance=False,
            max_sequence_length=tokens,
        )
        embeds = torch.cat([padded(row[None], tokens) for row in found])
        lengths = torch.tensor([len(row) for row in found], device=embeds.device)
        return Conditioning({"prompt_embeds": embeds, "prompt_lengths": lengths})

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [""])

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale - 1}  # cond + scale (cond - null) there
