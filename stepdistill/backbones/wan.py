"""Wan 2.1 and 2.2: text-to-video and image-to-video transformers; flow.

Wan 2.2's larger models are two experts, the first for noise levels from ``boundary_ratio`` on. They
are one network here: each sample goes to the expert of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from torch import Tensor, nn

from .. import lora_files
from ..conditioning import Conditioning
from ..denoisers import Backbone, Denoiser
from ..errors import UserError
from ..plans import StepPlan
from ..teachers import LoadOptions, Teacher
from .family import FamilyCard
from .latent import LatentFamily, encoder_device, frames_call, latent_frames, latent_size

HEIGHT, WIDTH, FRAMES, MAX_TOKENS = 480, 832, 81, 512  # of the pipelines' calls


class Experts(nn.Module):
    """Two transformers as one: ``high`` for timesteps from ``boundary`` on, ``low`` below it.

    An expert that no sample of a batch needs takes part with weight 0: every trainable weight gets
    a gradient in each pass, as DDP wants it.
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def dtype(self) -> torch.dtype:
        """What both compute in."""
        dtype: torch.dtype = getattr(self.high, "dtype")  # noqa: B009
        return dtype

    def forward(self, x: Tensor, timestep: Tensor, **conditions: Tensor | None) -> tuple[Tensor]:
        """The outputs of each sample's expert, as a transformer returns them."""
        is_high = timestep >= self.boundary
        if is_high.is_meta:  # no data to decide by: all of a batch to one expert, equal in size
            is_high = torch.ones(len(x), dtype=torch.bool)
        outputs, places, idle = [], [], []
        for expert, own in ((self.high, is_high), (self.low, ~is_high)):
            place = own.nonzero()[:, 0]
            if len(place) == 0:
                idle += [p.sum() for p in expert.parameters() if p.requires_grad]
                continue
            given = {name: c if c is None else c[place] for name, c in conditions.items()}
            outputs.append(expert(x[place], timestep[place], **given, return_dict=False)[0])
            places.append(place)
        output = torch.cat(outputs)[torch.cat(places).argsort()]
        if idle and torch.is_grad_enabled():
            output = output + 0.0 * torch.stack(idle).sum().to(output.dtype)
        return (output,)


class WanBackbone(Backbone):
    """WanTransformer3DModel, or two; the middle block of a single one is tapped."""

    def __init__(self, network: WanTransformer3DModel | Experts) -> None:
        super().__init__(network)
        if isinstance(network, WanTransformer3DModel):
            self.tap(network.blocks[len(network.blocks) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        if "image_latents" in cond:
            x = torch.cat([x, cond["image_latents"]], dim=1)
        conditions = {"encoder_hidden_states": cond["prompt_embeds"]}
        if "image_embeds" in cond:
            conditions["encoder_hidden_states_image"] = cond["image_embeds"]
        single = {} if isinstance(self.network, Experts) else {"return_dict": False}
        output: Tensor = self.network(x, timestep, **conditions, **single)[0]
        return output


class WanTextToVideo(LatentFamily):
    """WanPipeline."""

    card = FamilyCard(
        name="wan-t2v",
        task="text-to-video",
        pipeline="WanPipeline",
        network="WanTransformer3DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )
    backbone = WanBackbone
    max_tokens = MAX_TOKENS
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    passes_generator = False

    def network(self, pipeline: Any) -> nn.Module:
        if pipeline.config.expand_timesteps:
            raise UserError("Wan models with a time for each token (TI2V-5B) are not supported")
        if pipeline.config.boundary_ratio is None:
            return super().network(pipeline)
        boundary = pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
        return Experts(pipeline.transformer, pipeline.transformer_2, boundary)

    def student_networks(self, network: nn.Module) -> dict[str, nn.Module]:
        if isinstance(network, Experts):
            return {"transformer": network.high, "transformer_2": network.low}
        return super().student_networks(network)

    def save_lora(
        self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path
    ) -> dict[str, dict[str, Any]]:
        """One file for each expert, the second loaded into ``transformer_2``."""
        network = generator.backbone.network
        if not isinstance(network, Experts):
            return super().save_lora(generator, teacher, plan, folder)
        self.few_step_scheduler(generator, plan).save_pretrained(folder / "scheduler")
        files = {f"{name}.safetensors": getattr(network, name) for name in ("high", "low")}
        for file, expert in files.items():
            lora_files.save_diffusers(teacher.pipeline, self.component, expert, folder / file)
        return {"high.safetensors": {}, "low.safetensors": {"load_into_transformer_2": True}}

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        factor = pipeline.vae_scale_factor_spatial
        size = latent_size(pipeline, options, (HEIGHT // factor, WIDTH // factor))
        return (pipeline.vae.config.z_dim, latent_frames(pipeline, options, FRAMES), *size)

    def size_call(self, teacher: Teacher) -> dict[str, Any]:
        return {**super().size_call(teacher), **frames_call(teacher, teacher.sample_shape[1])}

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        embeds, _ = teacher.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=encoder_device(teacher.pipeline),
            max_sequence_length=teacher.options.max_tokens or MAX_TOKENS,
        )
        return Conditioning({"prompt_embeds": embeds})

    def null(self, teacher: Teacher) -> Conditioning:
        return WanTextToVideo.encode(self, teacher, [""])


class WanImageToVideo(WanTextToVideo):
    """WanImageToVideoPipeline: a prompt is (text, first frame); guidance drops the text alone."""

    card = FamilyCard(
        name="wan-i2v",
        task="image-to-video",
        pipeline="WanImageToVideoPipeline",
        network="WanTransformer3DModel",
        prediction="flow",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        text = super().encode(teacher, [prompt for prompt, _ in prompts])
        images = [self._image(teacher, image) for _, image in prompts]
        return text.replace(Conditioning.cat(images))

    def _image(self, teacher: Teacher, image: Any) -> Conditioning:
        """The first frame's latents and mask, and its embedding where the network takes one."""
        pipeline, (height, width) = teacher.pipeline, self.pixel_size(teacher)
        pixels = pipeline.video_processor.preprocess(image, height=height, width=width)
        pixels = pixels.to(pipeline.vae.device)
        frames = frames_call(teacher, teacher.sample_shape[1])["num_frames"]
        like = torch.zeros(1, *teacher.sample_shape, device=pixels.device)
        sizes = (teacher.sample_shape[0], height, width, frames)
        device = pixels.device
        _, condition = pipeline.prepare_latents(
            pixels.float(), 1, *sizes, torch.float32, device, None, like
        )
        found = {"image_latents": condition}
        if pipeline.transformer.config.image_dim is not None:
            found["image_embeds"] = pipeline.encode_image(image, encoder_device(pipeline))
        return Conditioning(found)

    def examples(self, teacher: Teacher, count: int) -> list[Any]:
        frame = Image.linear_gradient("L").convert("RGB")
        return [(text, frame) for text in super().examples(teacher, count)]

    def told(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """UserError for several images: the stock pipeline takes one a call."""
        texts, images = zip(*prompts, strict=True)
        if any(image is not images[0] for image in images):
            raise UserError("the stock image-to-video pipeline takes one image a call")
        return {"prompt": list(texts), "image": images[0]}
