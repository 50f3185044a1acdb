"""Networks large enough that their activations outweigh everything else, and DMD2 on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from stepdistill.backbones.dit import DiTBackbone
from stepdistill.backbones.sd import UNetBackbone
from stepdistill.backbones.sd3 import SD3Backbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import (
    Backbone,
    Denoiser,
    Guided,
    Parametrization,
    PredictsEps,
    PredictsFlow,
)
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.plans import StepPlan
from stepdistill.roles import Role, full, lora
from stepdistill.savings import checkpoint_gradients
from stepdistill.schedules import FlowSchedule, Schedule, VPSchedule

BATCH, SIZE = 2, 32
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]


@dataclass(frozen=True)
class Mid:
    """One of them: its network, how it is called, and the shapes of what it is told."""

    network: Callable[[], nn.Module]
    backbone: Callable[[Any], Backbone]
    cond: dict[str, tuple[int, ...]]
    channels: int = 4
    parametrization: type[Parametrization] = PredictsEps

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, SIZE, SIZE)

    def conditioning(self, device: str) -> Conditioning:
        """Numbers that differ from each other, and class 0."""
        found = {}
        for name, shape in self.cond.items():
            count = BATCH * math.prod(shape)
            found[name] = torch.arange(count, device=device).sin().reshape(BATCH, *shape)
        if "class_labels" in found:
            found["class_labels"] = found["class_labels"].long()
        return Conditioning(found)


def unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
    )


def sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=SIZE,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=128,
        pooled_projection_dim=64,
        pos_embed_max_size=SIZE,
    )


def dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, out_channels=8, num_layers=4, sample_size=SIZE
    )


MIDS = {
    "unet": Mid(unet, UNetBackbone, {"prompt_embeds": (77, 64)}),
    "sd3": Mid(
        sd3,
        SD3Backbone,
        {"prompt_embeds": (77, 64), "text_embeds": (64,)},
        channels=16,
        parametrization=PredictsFlow,
    ),
    "dit": Mid(dit, DiTBackbone, {"class_labels": ()}),
}


def denoiser(mid: Mid, device: str, dtype: torch.dtype = torch.float32) -> Denoiser:
    torch.manual_seed(0)
    schedule: Schedule = FlowSchedule()
    if mid.parametrization is PredictsEps:
        schedule = VPSchedule.from_betas(torch.linspace(1e-4, 2e-2, 1000))
    with torch.device(device):
        network = mid.network().to(dtype)
    made = Denoiser(mid.backbone(network), schedule, mid.parametrization())
    return made.eval().requires_grad_(False)


def dmd2(mid: Mid, device: str, *, rank: int, gan: bool, checkpointed: bool) -> DMD2:
    """DMD2 with guidance 2, full (rank 0) or LoRA roles."""
    teacher, cond = denoiser(mid, device), mid.conditioning(device)

    def role(name: str) -> Role:
        if rank == 0:
            return full(name, teacher)
        return lora(name, teacher, LoraConfig(r=rank, target_modules=ADAPTED))

    with torch.device(device):
        generator, critic = role("generator"), role("critic")
        head = CriticTrunk(build_head(teacher, mid.shape, cond)) if gan else None
    if checkpointed:
        checkpoint_gradients(generator)
        checkpoint_gradients(critic)
    return DMD2(
        generator,
        critic,
        teacher,
        StepPlan.uniform(1),
        DMD2Config(gan_weight=0.1 if gan else 0.0, guidance_scale=2.0),
        sample_shape=mid.shape,
        guide=lambda denoiser, scale: Guided(denoiser, scale, cond.select(slice(0, 1))),
        discriminator=head,
    )
