"""PixArt-alpha and -Sigma: transformers on latents told by T5; eps beside a learned variance.

The network's output has twice the channels; the second half, the variance, is not used by
deterministic samplers nor by anything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from ..conditioning import Conditioning
from ..data.buckets import Cropped
from ..denoisers import Backbone
from ..negative_attention.conditions import attention_arguments
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size

SIZES_ARE_CONDITIONS = 128  # latents a side: the pipeline tells PixArt-alpha sizes from 1024 px on


class PixArtBackbone(Backbone):
    """PixArtTransformer2DModel; its middle block is tapped."""

    network: PixArtTransformer2DModel

    def __init__(self, network: PixArtTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        sizes = {name: cond.get(name) for name in ("resolution", "aspect_ratio")}
        output: Tensor = self.network(
            x,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_mask"],
            timestep=timestep,
            added_cond_kwargs=sizes,
            cross_attention_kwargs=attention_arguments(self.network, cond),
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]


class PixArtAlpha(LatentFamily):
    """PixArtAlphaPipeline."""

    card = FamilyCard(
        name="pixart-alpha",
        task="text-to-image",
        pipeline="PixArtAlphaPipeline",
        network="PixArtTransformer2DModel",
        prediction="eps, learned variance",
        scheduler="LCMScheduler",
    )
    backbone = PixArtBackbone
    max_tokens = 512  # its pipelines set no bound: what T5 was trained on
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("proj", "linear", "linear_1", "linear_2"),
    )
    student_call: ClassVar[dict[str, Any]] = {
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
    }
    sizes_from: ClassVar[int | None] = SIZES_ARE_CONDITIONS

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        config = pipeline.transformer.config
        return (config.in_channels, *latent_size(pipeline, options, config.sample_size))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, mask, _, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=encoder_device(teacher.pipeline),
            clean_caption=True,
            **self.tokens_call(teacher),
        )
        texts = {"prompt_embeds": embeds, "prompt_mask": mask}
        return Conditioning({**texts, **self._sizes(teacher, embeds)})

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [""])

    def size_cond(self, teacher: Teacher, images: Sequence[Cropped]) -> Conditioning:
        """The size and aspect ratio that each image was cut to."""
        if teacher.pipeline.transformer.config.sample_size != self.sizes_from:
            return super().size_cond(teacher, images)
        sizes = torch.tensor([image.target_size for image in images]).float()
        ratios = sizes[:, :1] / sizes[:, 1:]
        return Conditioning({"resolution": sizes, "aspect_ratio": ratios})

    def _sizes(self, teacher: Teacher, like: Tensor) -> dict[str, Tensor]:
        """Resolution (B, 2) and aspect ratio (B, 1) in pixels, where the network takes them."""
        if teacher.pipeline.transformer.config.sample_size != self.sizes_from:
            return {}
        height, width = self.pixel_size(teacher)
        rows = torch.tensor([[height, width, height / width]]).to(like).expand(len(like), -1)
        return {"resolution": rows[:, :2], "aspect_ratio": rows[:, 2:]}


class PixArtSigma(PixArtAlpha):
    """PixArtSigmaPipeline: longer prompts, and no sizes as conditions."""

    card = FamilyCard(
        name="pixart-sigma",
        task="text-to-image",
        pipeline="PixArtSigmaPipeline",
        network="PixArtTransformer2DModel",
        prediction="eps, learned variance",
        scheduler="LCMScheduler",
    )
    sizes_from = None
