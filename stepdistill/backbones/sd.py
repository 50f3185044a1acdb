"""Stable Diffusion 1.x and 2.x: a U-Net on latents, told by one text encoder; eps or v.

SD 2.1 is often published with v prediction, and retrained at zero terminal SNR (Lin et al. 2023,
arXiv:2305.08891): both are read from the scheduler's config.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .. import lora_files
from ..conditioning import Conditioning
from ..denoisers import Backbone, Denoiser
from ..negative_attention.conditions import attention_arguments
from ..plans import StepPlan
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size

GUIDANCE_EMBEDDING = 256  # width of the (ignored) guidance embedding of a student


class UNetBackbone(Backbone):
    """UNet2DConditionModel; its middle block is tapped."""

    network: UNet2DConditionModel

    def __init__(self, network: UNet2DConditionModel) -> None:
        super().__init__(network)
        self.tap(network.mid_block)

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=cond["prompt_embeds"],
            timestep_cond=no_guidance_embedding(self.network, x),
            cross_attention_kwargs=attention_arguments(self.network, cond),
            return_dict=False,
        )[0]
        return output


class StableDiffusion(LatentFamily):
    """StableDiffusionPipeline."""

    card = FamilyCard(
        name="sd",
        task="text-to-image",
        pipeline="StableDiffusionPipeline",
        network="UNet2DConditionModel",
        prediction="eps, v",
        scheduler="LCMScheduler",
    )
    component = "unet"
    backbone = UNetBackbone
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
        "time_emb_proj",
    )
    student_call: ClassVar[
        dict[str, Any]
    ] = {}  # its U-Net says that guidance is embedded: see save

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        size = latent_size(pipeline, options, pipeline.unet.config.sample_size)
        return (pipeline.unet.config.in_channels, *size)

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, _ = teacher.pipeline.encode_prompt(
            list(prompts), encoder_device(teacher.pipeline), 1, False
        )
        return Conditioning({"prompt_embeds": embeds})

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [""])

    def save_lora(
        self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path
    ) -> dict[str, dict[str, Any]]:
        files = super().save_lora(generator, teacher, plan, folder)
        lora_files.save_kohya(generator.backbone.network, folder / lora_files.KOHYA)
        return files

    def student_weights(self, teacher: Teacher, student: Denoiser) -> dict[str, Tensor]:
        """Without the guidance embedding that an export adds."""
        own = teacher.denoiser.backbone.network.state_dict()
        found = super().student_weights(teacher, student)
        return {k: v for k, v in found.items() if k in own or not k.endswith("cond_proj.weight")}

    def student_networks(self, network: nn.Module) -> dict[str, nn.Module]:
        return {"unet": with_guidance_off(network)}


def with_guidance_off(unet: nn.Module) -> UNet2DConditionModel:
    """``unet`` (sharing its weights) with a guidance embedding that adds zero.

    Stock pipelines take a U-Net with ``time_cond_proj_dim`` for one that has guidance embedded, and
    call it once a step whatever guidance_scale is, so that their default call is exact.
    """
    assert isinstance(unet, UNet2DConditionModel)
    if unet.config.time_cond_proj_dim is not None:
        return unet
    given = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    config = {**given, "time_cond_proj_dim": GUIDANCE_EMBEDDING}
    with torch.device("meta"):
        student = UNet2DConditionModel.from_config(config)
    like = next(unet.parameters())
    width = unet.time_embedding.linear_1.in_features
    weights = dict(unet.state_dict())
    weights["time_embedding.cond_proj.weight"] = like.new_zeros(width, GUIDANCE_EMBEDDING)
    student.load_state_dict(weights, assign=True)
    return student.eval()


def no_guidance_embedding(unet: UNet2DConditionModel, x: Tensor) -> Tensor | None:
    """The input of a guidance embedding that adds zero, for a teacher that is such a student."""
    width = unet.config.time_cond_proj_dim
    return None if width is None else x.new_zeros(len(x), width)
