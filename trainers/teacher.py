"""Train a class-conditional pixel teacher, such as the bundled ``digits``.

    python -m stepdistill.trainers.teacher --output runs/teacher
    accelerate launch trainers/teacher.py --data images/ --size 32 --channels 3 --output runs/mine

The folder ``OUTPUT/teacher`` is in diffusers format and is what ``--teacher`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

from stepdistill.backbones.pixel import teacher as pixel_teacher
from stepdistill.cli import guarded
from stepdistill.config import parse, write_yaml
from stepdistill.data import Data
from stepdistill.data.digits import digits_data
from stepdistill.data.images import load_image_folder
from stepdistill.errors import UserError
from stepdistill.fit import FitConfig, fit
from stepdistill.methods.denoising import Denoising, DenoisingConfig
from stepdistill.roles import Role
from stepdistill.runs import RunFolder
from stepdistill.teachers import CARD


@dataclass(frozen=True)
class Options:
    """Train a class-conditional EDM teacher on pixels."""

    output: str  # the run folder
    data: str = "digits"  # "digits", or a folder with one sub-folder of images a class
    size: int = 8  # pixels, height and width
    channels: int = 1  # 1 grey, 3 colour
    widths: tuple[int, ...] = (16, 32)  # block_out_channels of UNet2DModel
    layers_per_block: int = 1  # of UNet2DModel
    sigma_data: float = 0.75  # standard deviation of the pixels in [-1, 1]
    sigma_min: float = 0.002  # lowest noise level of the schedule
    sigma_max: float = 80.0  # highest


DEFAULTS = {
    "max_steps": 6_000,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "lr_warmup": 100,
    "lr_decay": 3_600,
    "ema_half_life": 88_000,
    "log_every": 50,
    "save_every": 1_000,
    "method.noise_mean": -0.8,
}


def build_unet(options: Options, num_classes: int) -> UNet2DModel:
    """A UNet2DModel with attention in its middle block alone, and one class more: none."""
    levels = len(options.widths)
    return UNet2DModel(
        sample_size=options.size,
        in_channels=options.channels,
        out_channels=options.channels,
        block_out_channels=options.widths,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=options.layers_per_block,
        norm_num_groups=8,
        attention_head_dim=8,
        num_class_embeds=num_classes + 1,
    )


def load_data(options: Options) -> tuple[Data, int]:
    """The data and its number of classes."""
    if options.data == "digits":
        return digits_data(), 10
    images = load_image_folder(Path(options.data), (options.channels, options.size, options.size))
    if images.labels is None:
        raise UserError(f"{options.data} has no class sub-folders: a teacher by class needs them")
    return images, max(images.labels) + 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the diffusers folder of the averaged weights."""
    flat, nested = (Options, FitConfig), {"method": DenoisingConfig}
    settings = parse("stepdistill.trainers.teacher", flat, nested, arguments, DEFAULTS)
    options, config = settings.get(Options), settings.get(FitConfig)
    data, num_classes = load_data(options)
    torch.manual_seed(config.seed)
    unet = build_unet(options, num_classes)
    scheduler = CMStochasticIterativeScheduler(
        sigma_min=options.sigma_min,
        sigma_max=options.sigma_max,
        sigma_data=options.sigma_data,
        clip_denoised=False,
    )
    pipeline = ConsistencyModelPipeline(unet, scheduler)
    teacher = pixel_teacher(options.output, pipeline, null_class=num_classes)
    role = Role("generator", teacher.denoiser.requires_grad_(True).train())
    method = Denoising(role, settings.get(DenoisingConfig), teacher.null_cond)
    with RunFolder(options.output) as run:
        write_yaml(
            settings.resolved, run.path / "config.yaml", "python -m stepdistill.trainers.teacher"
        )
        result = fit(method, data, config, run, settings=settings.resolved["method"])
        if result.interrupted:
            return
        folder = run.path / "teacher"
        with result.ema.applied():
            unet.eval()
            pipeline.save_pretrained(folder)
        made_with = {k: v for k, v in settings.resolved.items() if k != "output"}
        card = {"null_class": num_classes, "num_classes": num_classes, "settings": made_with}
        (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    print(folder)


if __name__ == "__main__":
    guarded(main)
