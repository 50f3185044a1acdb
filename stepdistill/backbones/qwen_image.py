"""Qwen-Image: a joint-attention transformer on packed latents, told by Qwen2.5-VL; flow.

Its pipeline's guidance keeps the length that each token's prediction has without guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from ..conditioning import Conditioning, padded
from ..denoisers import Backbone, Denoises, Guided, Prediction
from ..schedules import Schedule, expand_like
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, latent_size, log_shift
from .packed import pack, unpack

MAX_TOKENS = 512  # of QwenImagePipeline's call


class QwenImageBackbone(Backbone):
    """QwenImageTransformer2DModel; the image stream of its middle block is tapped."""

    network: QwenImageTransformer2DModel

    def __init__(self, network: QwenImageTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2], place=1)
        last = f"transformer_blocks.{len(network.transformer_blocks) - 1}"
        text = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
        self.unread = tuple(f"{last}.{name}" for name in text)

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        height, width = x.shape[-2:]
        output: Tensor = self.network(
            hidden_states=pack(x),
            timestep=timestep / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_hidden_states_mask=cond["prompt_mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpack(output, height, width)


class LengthKeepingGuidance(nn.Module):
    """u = c |u_cond| / |c| with c = u_null + scale (u_cond - u_null), for each 2x2 token.

    u = (x_t - x0_hat) / sigma_t is the predicted flow, and |.| its length over a token's channels.
    """

    def __init__(self, guided: Guided, schedule: Schedule) -> None:
        super().__init__()
        self.guided, self.schedule = guided, schedule

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        (x0_cond, x0_guided), tapped = self.guided.both(x_t, t, cond, features=features)
        sigma = expand_like(self.schedule(t)[1], x_t)
        u_cond, combined = (x_t - x0_cond) / sigma, (x_t - x0_guided) / sigma
        ratio = pack(u_cond).norm(dim=-1, keepdim=True) / pack(combined).norm(dim=-1, keepdim=True)
        u = unpack(pack(combined) * ratio, *x_t.shape[-2:])
        return Prediction(x_t - sigma * u, tapped)


class QwenImage(LatentFamily):
    """QwenImagePipeline."""

    card = FamilyCard(
        name="qwen-image",
        task="text-to-image",
        pipeline="QwenImagePipeline",
        network="QwenImageTransformer2DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = QwenImageBackbone
    max_tokens = 1024
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    student_call: ClassVar[dict[str, Any]] = {"true_cfg_scale": 1.0}
    gives_sigmas = True
    passes_generator = False

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        channels = pipeline.transformer.config.in_channels // 4
        return (channels, *latent_size(pipeline, options, pipeline.default_sample_size))

    def mu(self, pipeline: Any, shape: tuple[int, ...]) -> float | None:
        return log_shift(pipeline.scheduler, shape[-2] // 2 * (shape[-1] // 2))

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        """Padded to ``max_tokens`` with a mask: the pipeline's own length is that of the batch."""
        tokens = teacher.options.max_tokens or MAX_TOKENS
        embeds, mask = teacher.pipeline.encode_prompt(
            list(prompts), device=encoder_device(teacher.pipeline), max_sequence_length=tokens
        )
        if mask is None:  # all of one length
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return Conditioning(
            {"prompt_embeds": padded(embeds, tokens), "prompt_mask": padded(mask, tokens)}
        )

    def null(self, teacher: Teacher) -> Conditioning:
        return self.encode(teacher, [" "])

    def guide(
        self, teacher: Teacher, denoiser: Denoises, guidance_scale: float | Tensor
    ) -> Denoises:
        guided = super().guide(teacher, denoiser, guidance_scale)
        if not isinstance(guided, Guided):
            return guided
        return LengthKeepingGuidance(guided, teacher.denoiser.schedule)

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        if guidance_scale == 1:
            return {"true_cfg_scale": 1.0}
        return {"true_cfg_scale": guidance_scale, "negative_prompt": " "}

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return pack(x0)

    def stock_noise(self, teacher: Teacher, count: int, generator: torch.Generator) -> Tensor:
        channels, height, width = teacher.sample_shape
        tokens = torch.randn(count, height * width // 4, 4 * channels, generator=generator)
        return unpack(tokens, height, width)

    def decode(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return super().decode(teacher, x0.unsqueeze(2)).squeeze(2)  # its autoencoder is of videos

    def encode_images(self, teacher: Teacher, pixels: Tensor) -> Tensor:
        return super().encode_images(teacher, pixels.unsqueeze(2)).squeeze(2)
