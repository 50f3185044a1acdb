"""What families that sample an autoencoder's latents share: loading, guidance, export, pixels.

x0 is what the stock pipeline calls ``latents``: scaled for the network, before any packing.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from .. import lora_files
from ..conditioning import Conditioning
from ..denoisers import Backbone, Denoiser, Denoises
from ..errors import UserError
from ..plans import StepPlan
from ..single_file import described_in
from ..teachers import LoadOptions, Stored, Teacher
from . import schedulers
from .components import (
    is_loaded,
    load_pipeline,
    read_pipeline,
    without_encoders,
    without_networks,
)
from .family import Family, frozen


class LatentFamily(Family):
    """A stock pipeline with an autoencoder, one network and a scheduler that states its schedule.

    ``component`` is the network's name in the pipeline, ``backbone`` the class that calls it.
    ``student_call`` are the arguments that make the stock pipeline call a student once a step.
    ``gives_sigmas``: the pipeline passes its own sigmas 1, 1 - 1/n, ... to the scheduler.
    """

    component: ClassVar[str] = "transformer"
    backbone: ClassVar[type[Backbone]]
    student_call: ClassVar[dict[str, Any]] = {"guidance_scale": 1.0}
    gives_sigmas: ClassVar[bool] = False

    def load(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        options = _completed(options, card)
        pipeline = read_pipeline(DiffusionPipeline, folder, options)
        teacher = self.teacher(pipeline, str(folder), options)
        return replace(teacher, prompts=tuple(card.get("prompts", ())))

    def load_without_encoders(
        self, folder: Path, card: dict[str, Any], options: LoadOptions, stored: Stored
    ) -> Teacher:
        """Encoders are None in the pipeline; an autoencoder that is not needed has its config."""
        options = _completed(options, card)
        instead = without_encoders(described_in(folder, options.config), stored.decodes)
        pipeline = load_pipeline(folder, instead, options)
        return self.teacher(pipeline, str(folder), options, stored)

    def load_encoders(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        options = _completed(options, card)
        instead = without_networks(described_in(folder, options.config))
        pipeline = load_pipeline(folder, instead, options)
        return self.teacher(pipeline, str(folder), options)

    def completed(self, teacher: Teacher) -> Teacher:
        parts = {k: v for k, v in teacher.pipeline.components.items() if is_loaded(v)}
        pipeline = load_pipeline(teacher.source, parts, teacher.options)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                frozen(part)
        return replace(teacher, pipeline=pipeline, stored=None)

    def teacher(
        self, pipeline: Any, name: str, options: LoadOptions, stored: Stored | None = None
    ) -> Teacher:
        """The Teacher of a pipeline that is already in memory; its networks are frozen."""
        self.check_tokens(options)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                frozen(part)
        shape = self.sample_shape(pipeline, options)
        schedule, parametrization = schedulers.read(pipeline.scheduler, self.mu(pipeline, shape))
        backbone = self.backbone(self.network(pipeline))
        denoiser = frozen(Denoiser(backbone, schedule, parametrization))
        teacher = Teacher(
            name=name,
            family=self,
            denoiser=denoiser,
            sample_shape=shape,
            null_cond=None,
            num_classes=None,
            pipeline=pipeline,
            options=options,
            stored=stored,
        )
        if stored is not None and not teacher.has_encoders:
            return replace(teacher, null_cond=stored.null_cond)
        return replace(teacher, null_cond=self.null(teacher))

    def network(self, pipeline: Any) -> nn.Module:
        """The module that denoises."""
        module: nn.Module = getattr(pipeline, self.component)
        return module

    @abstractmethod
    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        """The shape of one x0, at the size asked for or else the pipeline's default."""

    @abstractmethod
    def null(self, teacher: Teacher) -> Conditioning | None:
        """The conditioning of one unconditional sample."""

    def mu(self, pipeline: Any, shape: tuple[int, ...]) -> float | None:
        """The log shift that the pipeline derives from the resolution, if it does."""
        return None

    def check_plan(self, teacher: Teacher, plan: StepPlan) -> None:
        self.few_step_scheduler(teacher.denoiser, plan)

    def counts(self, teacher: Teacher, plan: StepPlan) -> list[int]:
        scheduler = self.few_step_scheduler(teacher.denoiser, plan)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not self.gives_sigmas:
            return [plan.steps]  # its last noise level is that of the whole plan
        return plan.counts()

    def few_step_scheduler(self, denoiser: Denoiser, plan: StepPlan) -> Any:
        """The stock scheduler that walks ``plan``; UserError if there is none."""
        schedule, parametrization = denoiser.schedule, denoiser.parametrization
        return schedulers.few_step(schedule, parametrization, plan, self.gives_sigmas)

    def save(self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path) -> None:
        student = copy.copy(teacher.pipeline)
        student.register_modules(
            **self.student_networks(generator.backbone.network),
            scheduler=self.few_step_scheduler(generator, plan),
        )
        student.save_pretrained(folder)

    def save_lora(
        self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path
    ) -> dict[str, dict[str, Any]]:
        if not hasattr(teacher.pipeline, "save_lora_weights"):
            return super().save_lora(generator, teacher, plan, folder)
        self.few_step_scheduler(generator, plan).save_pretrained(folder / "scheduler")
        path = folder / lora_files.WEIGHTS
        lora_files.save_diffusers(
            teacher.pipeline, self.component, generator.backbone.network, path
        )
        return {path.name: {}}

    def student_networks(self, network: nn.Module) -> dict[str, nn.Module]:
        """The pipeline's components that a student replaces."""
        return {self.component: network}

    def settings(self, teacher: Teacher) -> dict[str, Any]:
        return {**self.size_call(teacher), **self.tokens_call(teacher), **self.student_call}

    def tokens_call(self, teacher: Teacher) -> dict[str, Any]:
        """The argument that cuts prompts at the length asked for, if one is."""
        tokens = teacher.options.max_tokens
        return {} if tokens is None else {"max_sequence_length": tokens}

    def sample(
        self, teacher: Teacher, denoiser: Denoises, z: Tensor, cond: Conditioning, steps: int | None
    ) -> Tensor:
        """By the teacher's own scheduler."""
        scheduler = copy.deepcopy(teacher.pipeline.scheduler)
        self.set_timesteps(teacher, scheduler, steps or self.teacher_steps)
        return schedulers.walk(denoiser, teacher.denoiser, scheduler, z, cond)

    def set_timesteps(self, teacher: Teacher, scheduler: Any, steps: int) -> None:
        """Give ``scheduler`` the grid that the stock pipeline gives it for ``steps`` steps."""
        given: dict[str, Any] = {"num_inference_steps": steps}
        if self.gives_sigmas:
            given = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        mu = self.mu(teacher.pipeline, teacher.sample_shape)
        scheduler.set_timesteps(**given, **({} if mu is None else {"mu": mu}))

    def size_call(self, teacher: Teacher) -> dict[str, Any]:
        """The arguments that ask the pipeline for samples of this teacher's shape."""
        height, width = self.pixel_size(teacher)
        return {"height": height, "width": width}

    def pixel_size(self, teacher: Teacher) -> tuple[int, int]:
        """Height and width of a decoded sample, in pixels."""
        factor = spatial_factor(teacher.pipeline)
        height, width = teacher.sample_shape[-2:]
        return height * factor, width * factor

    def decode(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return decode(teacher.pipeline.vae, x0)

    def encode_images(self, teacher: Teacher, pixels: Tensor) -> Tensor:
        return encode(teacher.pipeline.vae, pixels)

    def pixel_shape(self, teacher: Teacher) -> tuple[int, ...]:
        return (3, *self.pixel_size(teacher))

    def takes_size(self, teacher: Teacher, height: int, width: int) -> bool:
        each = 2 * spatial_factor(teacher.pipeline)
        return height % each == 0 and width % each == 0


def spatial_factor(pipeline: Any) -> int:
    """Pixels a latent, along height or width."""
    for name in ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor"):
        if hasattr(pipeline, name):
            return int(getattr(pipeline, name))
    return int(2 ** (len(pipeline.vae.config.block_out_channels) - 1))


def latent_size(
    pipeline: Any, options: LoadOptions, default: int | tuple[int, int]
) -> tuple[int, int]:
    """(height, width) in latents: the pixels asked for, or else ``default`` latents."""
    factor = spatial_factor(pipeline)
    height, width = (default, default) if isinstance(default, int) else default
    for name in ("height", "width"):
        if (getattr(options, name) or 0) % (2 * factor):
            raise UserError(
                f"{name} must be a multiple of {2 * factor}, got {getattr(options, name)}"
            )
    return (
        height if options.height is None else options.height // factor,
        width if options.width is None else options.width // factor,
    )


def latent_frames(pipeline: Any, options: LoadOptions, default: int) -> int:
    """Frames in latents: the first frame alone, then some frames each."""
    each: int = pipeline.vae_scale_factor_temporal
    frames = default if options.frames is None else options.frames
    if frames % each != 1:
        raise UserError(f"frames must be a multiple of {each} plus 1, got {frames}")
    return (frames - 1) // each + 1


def frames_call(teacher: Teacher, frames: int) -> dict[str, Any]:
    """The argument that asks the pipeline for as many frames as ``frames`` latents hold."""
    return {"num_frames": (frames - 1) * teacher.pipeline.vae_scale_factor_temporal + 1}


def encoder_device(pipeline: Any) -> torch.device:
    """Where the text encoder is."""
    device: torch.device = next(pipeline.text_encoder.parameters()).device
    return device


def log_shift(scheduler: Any, tokens: int) -> float | None:
    """mu, linear in the number of image tokens, where the scheduler shifts by it (Flux)."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu: float = low + (tokens - few) * (high - low) / (many - few)
    return mu


def per_channel(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale) with x0 = (latent - shift) scale, from the autoencoder's config."""
    config = vae.config
    shape = (1, -1, *([1] * (like.ndim - 2)))
    mean, std = config.get("latents_mean"), config.get("latents_std")
    factor = config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        shift = torch.tensor(mean).to(like).reshape(shape)
        return shift, factor / torch.tensor(std).to(like).reshape(shape)
    shift = torch.tensor(config.get("shift_factor") or 0.0).to(like)
    return shift, torch.tensor(factor).to(like)


def decode(vae: Any, x0: Tensor) -> Tensor:
    """x0 -> pixels in [-1, 1], with a gradient where x0 has one."""
    shift, scale = per_channel(vae, x0)
    latent = (x0 / scale + shift).to(vae.dtype).to(vae.device)
    pixels: Tensor = vae.decode(latent, return_dict=False)[0]
    return pixels.to(x0.dtype)


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> x0: the mode of the autoencoder's posterior, scaled."""
    found = vae.encode(pixels.to(vae.dtype).to(vae.device), return_dict=False)[0]
    latent = found if isinstance(found, Tensor) else found.mode()  # Sana's gives the latent
    shift, scale = per_channel(vae, latent.float())
    x0: Tensor = (latent.float() - shift) * scale
    return x0


def _completed(options: LoadOptions, card: dict[str, Any]) -> LoadOptions:
    """With the length of prompts that the teacher's card states, where none is asked for."""
    if options.max_tokens is None:
        return replace(options, max_tokens=card.get("max_tokens"))
    return options
