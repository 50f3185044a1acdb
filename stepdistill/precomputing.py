"""``stepdistill precompute``: from options to a folder of samples that trainings read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import precomputed
from .data.buckets import BucketOrder, bucket_order, make_buckets
from .data.captioned_images import CaptionedImages, Size, load_captioned_images
from .data.images import load_image_folder
from .data.precompute import Encode, precompute
from .data.shard_writer import ShardWriter
from .data.sharded_data import ShardedData, load_shards
from .draws import check_seed
from .encoding import (
    check_deterministic,
    encode_captioned,
    encode_classes,
    encode_prompts,
    read_told,
    sample_pairs,
)
from .errors import UserError
from .teachers import LoadOptions, Teacher, load_encoders, load_teacher


@dataclass(frozen=True)
class PrecomputeOptions:
    """Encode prompts or images once for any number of trainings, or sample noise-image pairs.

    Args:
        teacher: a built-in name, a diffusers folder, a .safetensors file or a hub id
        output: the folder to write; the same command goes on with it
        prompts: a .txt, .jsonl, .csv or .parquet file, or the name of a data set; of an
            image-to-video teacher captioned images, its first frames
        data: images with captions: a folder, tar shards or the name of a data set; images by class
            in sub-folders, of a teacher that is told by classes
        pairs: samples of the teacher to make, of the prompts or of all classes in turn; a folder
            takes more of them at any time
        buckets: keep the images' aspect ratios, at about the teacher's number of pixels
        bucket_step: pixels that the sides of buckets are multiples of (SDXL's 64)
        column: of the prompts or captions; default: the first of prompt, caption, text
        split: of a data set that has several; default: train
        limit: the first prompts or captioned images alone, and of a data set's name no more are
            downloaded; default: all
        sampler_steps: of the teacher, for pairs; default: its family's own
        guidance_scale: of the teacher, for pairs; 1 is off
        seed: of the first pair's noise; pair i has seed + i
        batch_size: samples encoded or sampled at once
        shard_size: samples a file
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        device: where the encoders run; default: cuda if there is one, else cpu
    """

    teacher: str
    output: str = ""
    prompts: str = ""
    data: str = ""
    pairs: int = 0
    buckets: bool = False
    bucket_step: int = 64
    column: str | None = None
    split: str | None = None
    limit: int | None = None
    sampler_steps: int | None = None
    guidance_scale: float = 1.0
    seed: int = 0
    batch_size: int = 16
    shard_size: int = 1000
    skip_corrupt: bool = False
    device: str = ""

    def __post_init__(self) -> None:
        if not self.output:
            raise UserError("precompute needs --output, the folder to write")
        if self.pairs < 0:
            raise UserError(f"pairs must be at least 0, got {self.pairs}")
        for name in ("bucket_step", "sampler_steps", "batch_size", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        check_seed(self.seed)
        if self.data and (self.prompts or self.pairs):
            raise UserError("--data brings its own captions or classes: give it alone")
        if self.buckets and not self.data:
            raise UserError("buckets are of images: give --data, or leave --buckets out")
        if self.picked and not (self.prompts or self.data):
            raise UserError(
                f"{', '.join(self.picked)} is of prompts or captions: give --prompts or --data, or "
                "leave it out"
            )
        if not self.pairs and (self.sampler_steps is not None or self.guidance_scale != 1):
            raise UserError("sampler_steps and guidance_scale are of pairs: give --pairs")
        if not (self.data or self.prompts or self.pairs):
            raise UserError("there is nothing to precompute: give --prompts, --data or --pairs")

    @property
    def picked(self) -> dict[str, Any]:
        """What was asked for of the source's texts, as ``read_prompts`` takes it."""
        asked = {"column": self.column, "split": self.split, "limit": self.limit}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Task:
    """Inputs to encode: ``made_from`` is what they depend on, ``ends`` are those of its shapes."""

    made_from: dict[str, Any]
    ends: Sequence[int]
    encode: Encode


def precompute_folder(options: PrecomputeOptions, load: LoadOptions) -> ShardedData:
    """Write the folder that ``options`` ask for, or go on with it; what it then holds."""
    device = _device(options.device)
    if options.pairs:
        teacher = load_teacher(options.teacher, "cpu", load)
    else:
        teacher = load_encoders(options.teacher, load)
    task = _task(options, teacher)
    made_from = {
        "teacher": precomputed.described(teacher),
        "batch_size": options.batch_size,
        "device": device.type,
        **task.made_from,
    }
    beside = precomputed.beside(teacher)
    _move(teacher, device, sampling=options.pairs > 0)
    grows = options.pairs > 0
    with ShardWriter(options.output, made_from, options.shard_size, beside, grows) as writer:
        precompute(writer, task.encode, task.ends, options.batch_size)
    return load_shards(Path(options.output))


def _task(options: PrecomputeOptions, teacher: Teacher) -> Task:
    if options.pairs:
        return _pairs(options, teacher)
    if options.prompts:
        told, count = read_told(teacher, options.prompts, **options.picked)
        made_from = {"kind": "prompts", "source": options.prompts, "limit": options.limit}
        made_from.update(options.picked)
        return Task(made_from, [count], encode_prompts(teacher, told))
    if teacher.is_told_by_text:
        return _captioned(options, teacher)
    return _by_class(options, teacher)


def _pairs(options: PrecomputeOptions, teacher: Teacher) -> Task:
    check_deterministic(teacher, options.sampler_steps)
    teacher.guided(options.guidance_scale)  # UserError if it cannot be
    if teacher.is_told_by_text and not options.prompts:
        raise UserError(f"{options.teacher} is told by text: give --prompts for its pairs")
    told: Any = range(teacher.num_classes or 1)
    count = len(told)
    if options.prompts:
        told, count = read_told(teacher, options.prompts, **options.picked)
    made_from = {
        **{name: value for name, value in options.picked.items() if name != "limit"},
        "kind": "pairs",
        "source": options.prompts,
        "told": count,
        "seed": options.seed,
        "sampler_steps": options.sampler_steps,
        "guidance_scale": options.guidance_scale,
    }
    sampling = (options.seed, options.sampler_steps, options.guidance_scale)
    return Task(made_from, [options.pairs], sample_pairs(teacher, told, *sampling))


def _captioned(options: PrecomputeOptions, teacher: Teacher) -> Task:
    if not teacher.family.card.task.endswith("to-image"):
        raise UserError(f"{options.teacher} makes videos, and --data brings images: give --prompts")
    images = load_captioned_images(options.data, **options.picked)
    order = _order(options, teacher, images)
    made_from = {
        "kind": "images",
        "source": options.data,
        "buckets": options.buckets and options.bucket_step,
        "skip_corrupt": options.skip_corrupt,
        **options.picked,
    }
    encode = encode_captioned(teacher, images, order, options.skip_corrupt)
    return Task(made_from, order.ends, encode)


def _order(options: PrecomputeOptions, teacher: Teacher, images: CaptionedImages) -> BucketOrder:
    """The images by bucket; one bucket of the teacher's size unless ``buckets`` are asked for."""
    _, height, width = teacher.family.pixel_shape(teacher)
    if not options.buckets:
        everything = tuple(range(len(images)))
        return BucketOrder(everything, (len(images),), (Size(height, width),))
    if height != width:
        raise UserError(f"buckets are made around a square, and the teacher's is {height}x{width}")
    found = make_buckets(height, options.bucket_step)
    taken = [size for size in found if teacher.family.takes_size(teacher, *size)]
    if len(taken) < 2:
        raise UserError(
            f"of buckets of {options.bucket_step} pixels {options.teacher} takes "
            f"{len(taken)}: leave --buckets out, or give another --bucket_step"
        )
    return bucket_order(images.sizes(options.skip_corrupt), taken)


def _by_class(options: PrecomputeOptions, teacher: Teacher) -> Task:
    if options.buckets:
        raise UserError(f"{options.teacher} takes images of one size: leave --buckets out")
    if options.picked:
        raise UserError(
            f"{', '.join(options.picked)} is of prompts or captions, and {options.teacher} is told "
            "by classes: leave it out"
        )
    shape = teacher.family.pixel_shape(teacher)
    images = load_image_folder(Path(options.data), shape, options.skip_corrupt)
    images = images.for_model(teacher.num_classes)
    made_from = {"kind": "images by class", "source": options.data, "classes": images.classes}
    made_from["skipped"] = [str(file) for file in images.skipped]
    return Task(made_from, [len(images)], encode_classes(teacher, images))


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {name} here: leave --device out") from error


def _move(teacher: Teacher, device: torch.device, sampling: bool) -> None:
    """The encoders onto ``device``, and the network too where it is sampled."""
    network = {id(module) for module in teacher.denoiser.modules()}
    for part in teacher.pipeline.components.values():
        if isinstance(part, nn.Module) and (sampling or id(part) not in network):
            part.to(device)
    if sampling:
        teacher.denoiser.to(device)
