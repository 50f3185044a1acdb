"""What ``stepdistill precompute`` asks of a teacher: prompts, images and noise -> samples to keep.

Each function gives the :data:`~stepdistill.data.precompute.Encode` of one kind of input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .conditioning import Conditioning
from .data.buckets import BucketOrder, crop_to
from .data.captioned_images import CaptionedImages, load_captioned_images
from .data.images import CorruptImageError, ImageFolder
from .data.precompute import Encode, Encoded, LeftOut
from .data.prompts import read_prompts
from .data.shards import CONDITION
from .denoisers import Prediction
from .errors import UserError
from .sampling import NoiseStreams, sample_teacher
from .teachers import Teacher


@dataclass(frozen=True)
class FirstFrames:
    """The prompts of an image-to-video teacher: (caption, first frame)."""

    images: CaptionedImages

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        return ((caption, image) for image, caption in self.images)


def read_told(
    teacher: Teacher,
    source: str,
    column: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> tuple[Iterable[Any], int]:
    """(what ``source`` tells the teacher, how many): prompts, or captioned first frames.

    ``column``, ``split`` and ``limit`` are those of :func:`read_prompts`. UserError for a teacher
    that is told by classes.
    """
    if not teacher.is_told_by_text:
        raise UserError(f"{teacher.name} is told by classes, not by prompts: leave --prompts out")
    if teacher.family.card.task.startswith("image"):
        images = load_captioned_images(source, column, split=split, limit=limit)
        return FirstFrames(images), len(images)
    prompts = read_prompts(source, column, split, limit)
    return prompts, prompts.count().prompts


def encode_prompts(teacher: Teacher, told: Iterable[Any]) -> Encode:
    """Conditionings of what the teacher is told."""
    in_turn = _InTurn(told)

    def encode(batch: range) -> list[Encoded | LeftOut]:
        prompts = in_turn.of(batch)
        return _samples({}, teacher.encode(prompts), [text_of(prompt) for prompt in prompts])

    return encode


def encode_captioned(
    teacher: Teacher, images: CaptionedImages, order: BucketOrder, skip_corrupt: bool
) -> Encode:
    """x0 of images, cut to their buckets, and the conditionings of their captions and sizes.

    A CorruptImageError names an unreadable image, unless ``skip_corrupt`` leaves it out.
    """

    def encode(batch: range) -> list[Encoded | LeftOut]:
        cropped, captions, left_out = [], [], {}
        for position in batch:
            index = order.order[position]
            try:
                image, caption = images[index]
            except CorruptImageError:
                if not skip_corrupt:
                    raise
                left_out[position] = LeftOut(images.name(index))
                continue
            cropped.append(crop_to(image, order.size_at(position)))
            captions.append(caption)
        if not cropped:
            return list(left_out.values())
        pixels = torch.stack([_pixels(one.image) for one in cropped])
        cond = teacher.encode(captions)
        cond = cond.replace(teacher.family.size_cond(teacher, cropped))
        x0 = teacher.family.encode_images(teacher, pixels)
        samples = iter(_samples({"x0": x0}, cond, captions))
        return [left_out.get(position) or next(samples) for position in batch]

    return encode


def encode_classes(teacher: Teacher, images: ImageFolder) -> Encode:
    """x0 of images and their class labels."""

    def encode(batch: range) -> list[Encoded | LeftOut]:
        pixels, cond = images.fetch(list(batch))
        x0 = teacher.family.encode_images(teacher, pixels)
        return _samples({"x0": x0}, cond, [""] * len(batch))

    return encode


def sample_pairs(
    teacher: Teacher, told: Iterable[Any], seed: int, steps: int | None, guidance_scale: float
) -> Encode:
    """(z, x0, cond) by the teacher's own sampler: pair i has the noise of seed + i, whatever the
    others, and is told what ``told``, repeated without end, has at i.
    """
    in_turn = _InTurn(_repeated(told))

    def encode(batch: range) -> list[Encoded | LeftOut]:
        prompts = in_turn.of(batch)
        cond = teacher.encode(prompts)
        z = NoiseStreams(seed + i for i in batch).normal(teacher.sample_shape)
        x0 = sample_teacher(teacher, cond, z, steps, guidance_scale)
        return _samples({"x0": x0, "z": z}, cond, [text_of(prompt) for prompt in prompts])

    return encode


def check_deterministic(teacher: Teacher, steps: int | None) -> None:
    """UserError if the teacher's sampler draws random numbers on its way: z would not tell x0.

    It walks twice under other random states, with x_t / 2 in place of the network's x0.
    """

    def halve(x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False) -> Prediction:
        return Prediction(x_t / 2)

    z, found = NoiseStreams([0]).normal(teacher.sample_shape), []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            cond = Conditioning.empty(1)
            found.append(teacher.family.sample(teacher, halve, z, cond, steps))
    if not torch.equal(*found):
        raise UserError(
            f"{teacher.name} is sampled by {type(teacher.pipeline.scheduler).__name__}, which adds "
            "noise at each step, so that no x0 belongs to a z: replace the folder's scheduler by a "
            "deterministic one, for example DDIMScheduler"
        )


def _samples(
    tensors: dict[str, Tensor], cond: Conditioning, texts: list[str]
) -> list[Encoded | LeftOut]:
    """Row by row, under the names that shards have."""
    named = {**tensors, **{CONDITION + name: value for name, value in cond.items()}}
    rows = ({name: value[i] for name, value in named.items()} for i in range(len(texts)))
    return [Encoded(row, text) for row, text in zip(rows, texts, strict=True)]


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def text_of(prompt: Any) -> str:
    """What is kept beside a sample; nothing of a class number."""
    text = prompt[0] if isinstance(prompt, tuple) else prompt
    return text if isinstance(text, str) else ""


class _InTurn:
    """What ``told`` has for batches that follow each other, from the first that is asked for on."""

    def __init__(self, told: Iterable[Any]) -> None:
        self.told = told
        self.rest: Iterator[Any] | None = None

    def of(self, batch: range) -> list[Any]:
        """One for each input of the batch."""
        if self.rest is None:
            self.rest = islice(self.told, batch.start, None)
        return list(islice(self.rest, len(batch)))


def _repeated(told: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from told
