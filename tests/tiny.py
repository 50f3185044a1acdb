"""Tiny random models and runs that several tests share."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

from stepdistill.teachers import CARD, Teacher, load_teacher


def tiny_unet(seed: int = 0, **overrides: object) -> UNet2DModel:
    """A random class-conditional UNet of 8x8 grey images, 10 classes and the null one."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "num_class_embeds": 11,
    }
    return UNet2DModel(**{**config, **overrides})


def tiny_teacher_folder(folder: Path, null_class: int | None = 10, **overrides: object) -> Path:
    """A teacher folder in the form that trainers/teacher.py writes."""
    scheduler = CMStochasticIterativeScheduler(sigma_data=0.75, clip_denoised=False)
    ConsistencyModelPipeline(tiny_unet(**overrides).eval(), scheduler).save_pretrained(folder)
    if null_class is not None:
        (folder / CARD).write_text(json.dumps({"null_class": null_class}))
    return folder


def tiny_teacher(folder: Path) -> Teacher:
    """The same, loaded."""
    return load_teacher(tiny_teacher_folder(folder))
