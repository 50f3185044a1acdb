"""The pixel family: diffusers' UNet2DModel with EDM preconditioning, unconditional or by class.

A folder of this family is a ``ConsistencyModelPipeline``: its scheduler's config carries sigma_min,
sigma_max, sigma_data and rho. The network is fed 250 ln sigma, so a student runs in the stock
pipeline with nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Backbone, Denoiser, Denoises, PredictsEDM
from ..errors import UserError
from ..plans import StepPlan, renoise_move, start, teacher_times
from ..schedules import EDMSchedule
from ..solvers import heun_step, sample
from ..teachers import LoadOptions, Teacher
from .components import read_pipeline
from .family import Family, FamilyCard, frozen

NOISE_SCALE = 250.0  # CMStochasticIterativeScheduler feeds 1000 * 0.25 * ln sigma


class PixelBackbone(Backbone):
    """UNet2DModel behind the Backbone contract; its middle block is tapped."""

    network: UNet2DModel

    def __init__(self, network: UNet2DModel) -> None:
        super().__init__(network)
        self.tap(network.mid_block)

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        labels = cond.get("class_labels")
        output: Tensor = self.network(x, timestep, class_labels=labels, return_dict=False)[0]
        return output


class EDMPixels(Family):
    """ConsistencyModelPipeline."""

    card = FamilyCard(
        name="edm-pixels",
        task="class-to-image",
        pipeline="ConsistencyModelPipeline",
        network="UNet2DModel",
        prediction="EDM's F",
        scheduler="CMStochasticIterativeScheduler",
    )
    lora_targets = ("conv1", "conv2", "time_emb_proj", "to_q", "to_k", "to_v", "to_out.0")
    output_type = "np"
    teacher_steps = 18  # Karras et al. 2022, Table 2
    samples_teachers = False  # ConsistencyModelPipeline noises x0_hat again at each step

    def load(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        """``card`` names the null class, if there is one."""
        self.check_tokens(options)
        pipeline = read_pipeline(ConsistencyModelPipeline, folder, options)
        if not isinstance(pipeline.scheduler, CMStochasticIterativeScheduler):
            raise UserError(
                f"{folder}: the pixel family needs CMStochasticIterativeScheduler, which states "
                f"the EDM noise range, and this folder has {type(pipeline.scheduler).__name__}"
            )
        return teacher(str(folder), pipeline, card.get("null_class"), options)

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        """Class numbers -> Conditioning. UserError for one that the teacher does not have."""
        if teacher.num_classes is None:
            return Conditioning.empty(len(prompts))
        labels = torch.tensor([int(p) for p in prompts])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < teacher.num_classes:
            raise UserError(
                f"class labels must lie in 0 to {teacher.num_classes - 1}: {labels.tolist()}"
            )
        return Conditioning({"class_labels": labels})

    def classes(self, pipeline: Any) -> int | None:
        embeds: int | None = pipeline.unet.config.num_class_embeds
        return embeds

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        return {}  # the stock pipeline knows none

    def examples(self, teacher: Teacher, count: int) -> list[Any]:
        classes = teacher.num_classes
        return [None if classes is None else i % classes for i in range(count)]

    def sample(
        self, teacher: Teacher, denoiser: Denoises, z: Tensor, cond: Conditioning, steps: int | None
    ) -> Tensor:
        """Heun's method (Karras et al. 2022, Algorithm 1): 2 steps - 1 calls."""
        schedule = teacher.denoiser.schedule
        x_t, times = start(StepPlan(), schedule, z), teacher_times(steps or self.teacher_steps)
        return sample(denoiser, schedule, x_t, times, cond, heun_step)

    def student(self, teacher: Teacher) -> Denoiser:
        """The identity at sigma_min: consistency-model scalings (Song et al. 2023, appendix C)
        differ from EDM's by sigma_min alone.
        """
        source = teacher.denoiser.parametrization
        schedule = teacher.denoiser.schedule
        assert isinstance(source, PredictsEDM)
        assert isinstance(schedule, EDMSchedule)
        parametrization = PredictsEDM(source.sigma_data, schedule.sigma_min, source.noise_scale)
        return Denoiser(teacher.denoiser.backbone, schedule, parametrization)

    def check_plan(self, teacher: Teacher, plan: StepPlan) -> None:
        assert isinstance(teacher.denoiser.schedule, EDMSchedule)
        _rho_of(plan, teacher.denoiser.schedule)

    def save(self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path) -> None:
        """Two surprises of the stock pipeline are exported away: its scheduler clamps x0 by default
        (clip_denoised is off here), and a call without labels draws from every class embedding, the
        null class too (it is cut off here).
        """
        schedule, parametrization = generator.schedule, generator.parametrization
        assert isinstance(schedule, EDMSchedule)
        assert isinstance(parametrization, PredictsEDM)
        scheduler = CMStochasticIterativeScheduler(
            # n of n + 1 points: the scheduler's ramp j / (num_train_timesteps - 1) is then j / n
            num_train_timesteps=plan.steps + 1,
            sigma_min=schedule.sigma_min,
            sigma_max=_noise_levels(plan, schedule)[0].item(),
            sigma_data=parametrization.sigma_data,
            rho=_rho_of(plan, schedule),
            clip_denoised=False,
        )
        network = generator.backbone.network
        assert isinstance(network, UNet2DModel)
        unet = _without_null_class(network, teacher.num_classes)
        ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder)

    def told(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """Class numbers, or None for each sample of an unconditional model."""
        told: dict[str, Any] = {"batch_size": len(prompts)}
        return told if None in prompts else {**told, "class_labels": list(prompts)}

    def student_weights(self, teacher: Teacher, student: Denoiser) -> dict[str, Tensor]:
        """With the teacher's null class, which an export cuts off."""
        found, name = super().student_weights(teacher, student), "class_embedding.weight"
        if teacher.null_cond is not None and name in found:
            own = teacher.denoiser.backbone.network.state_dict()[name]
            found[name] = torch.cat([found[name], own[len(found[name]) :].to(found[name])])
        return found

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def teacher(
    name: str,
    pipeline: ConsistencyModelPipeline,
    null_class: int | None,
    options: LoadOptions | None = None,
) -> Teacher:
    """A Teacher from the pipeline in memory. ``null_class`` is the label that means none."""
    unet, config = pipeline.unet, pipeline.scheduler.config
    schedule = EDMSchedule(config.sigma_min, config.sigma_max, config.rho)
    parametrization = PredictsEDM(config.sigma_data, noise_scale=NOISE_SCALE)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{name}: the stock pipeline samples squares, not {height}x{width}")
    embeds = unet.config.num_class_embeds
    if null_class is not None and (embeds is None or not 0 <= null_class < embeds):
        raise UserError(f"{name}: null class {null_class} is none of its {embeds} embeddings")
    classes = None if embeds is None else embeds - (null_class is not None)
    null = (
        None if null_class is None else Conditioning({"class_labels": torch.tensor([null_class])})
    )
    return Teacher(
        name=name,
        family=EDMPixels(),
        denoiser=frozen(Denoiser(PixelBackbone(unet), schedule, parametrization)),
        sample_shape=(unet.config.in_channels, height, width),
        null_cond=null,
        num_classes=classes,
        pipeline=pipeline,
        options=options or LoadOptions(),
    )


def _rho_of(plan: StepPlan, schedule: EDMSchedule) -> float:
    """The rho whose Karras grid from the plan's first noise level has all: 7 for StepPlan.uniform.

    UserError for a plan that no rho gives, or that does not re-noise: the scheduler cannot follow.
    """
    if plan.move is not renoise_move:
        raise UserError(f"the pixel pipeline noises x0_hat again: not as {plan.to_dict()}")
    wanted = _noise_levels(plan, schedule)
    even = torch.tensor(StepPlan.uniform(plan.steps).times, dtype=torch.float64)

    def grid(rho: float) -> Tensor:
        return EDMSchedule(schedule.sigma_min, wanted[0].item(), rho)(even)[1]

    low, high = 1.0, 100.0  # sigma_1 falls as rho grows: bisect on it
    for _ in range(100 if plan.steps > 1 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if grid(middle)[1] > wanted[1] else (low, middle)
    rho = schedule.rho if torch.allclose(grid(schedule.rho), wanted, rtol=1e-6) else low
    if not torch.allclose(grid(rho), wanted, rtol=1e-6):
        raise UserError(
            f"the pixel pipeline steps through a Karras grid; no rho gives {plan.to_dict()}. "
            "Take evenly spaced times, or StepPlan.karras"
        )
    return rho


def _noise_levels(plan: StepPlan, schedule: EDMSchedule) -> Tensor:
    """sigma at the plan's times, falling."""
    return schedule(torch.tensor(plan.times, dtype=torch.float64))[1]


def _without_null_class(unet: UNet2DModel, classes: int | None) -> UNet2DModel:
    """A copy of ``unet`` with the first ``classes`` class embeddings."""
    config = {**unet.config, "num_class_embeds": classes}
    copied = UNet2DModel.from_config(config)
    weights = dict(unet.state_dict())
    if classes is not None:
        weights["class_embedding.weight"] = weights["class_embedding.weight"][:classes]
    copied.load_state_dict(weights)
    return copied.eval()
