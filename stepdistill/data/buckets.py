"""Aspect-ratio buckets: few sizes of nearly one area, so that images of one bucket batch uncut.

As SDXL's (Podell et al. 2023, arXiv:2307.01952, section 2.3 and appendix I). diffusers'
``generate_aspect_ratio_buckets`` has 11 ratios up to 2:1 and exceeds the area by up to 13 %, and
its ``find_nearest_bucket`` weighs tall and wide images differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from ..errors import UserError
from .captioned_images import Size


def make_buckets(resolution: int, divisor: int, longest_ratio: float = 4.0) -> tuple[Size, ...]:
    """For each long side the longest short side that keeps height * width <= ``resolution``^2.

    Both are multiples of ``divisor``; the ratio of the sides is at most ``longest_ratio``. From the
    tallest to the widest.
    """
    if divisor < 1 or resolution < divisor or resolution % divisor:
        raise UserError(
            f"the resolution {resolution} must be a multiple of {divisor}: give {divisor} or "
            f"{max(1, round(resolution / max(divisor, 1))) * divisor}"
        )
    if longest_ratio < 1:
        raise UserError(f"longest_ratio must be at least 1, got {longest_ratio}")
    wide = []
    for width in range(resolution, math.floor(resolution * longest_ratio) + 1, divisor):
        height = resolution**2 // (width * divisor) * divisor
        if height and width <= longest_ratio * height:
            wide.append(Size(height, width))
    tall = [Size(size.width, size.height) for size in reversed(wide) if size.width > size.height]
    return (*tall, *wide)


def nearest(buckets: Sequence[Size], size: Size) -> int:
    """The bucket whose log(width / height) is nearest: least is cropped, tall or wide alike."""
    ratio = math.log(size.width / size.height)
    away = [abs(math.log(bucket.width / bucket.height) - ratio) for bucket in buckets]
    return away.index(min(away))


class Cropped(NamedTuple):
    """An image of a bucket's size, and what SDXL is told about where it comes from."""

    image: Image.Image
    original_size: Size
    crop_top_left: tuple[int, int]  # in the resized image
    target_size: Size

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's six micro-conditioning values, heights before widths (sections 2.2 and 2.3)."""
        return (*self.original_size, *self.crop_top_left, *self.target_size)


def crop_to(image: Image.Image, bucket: Size) -> Cropped:
    """Resize with Lanczos until the image covers the bucket, and cut out the middle."""
    original = Size(image.height, image.width)
    # the exact fractions, compared in whole numbers: one side fits, the other is not below
    if bucket.height * original.width >= bucket.width * original.height:
        resized = Size(bucket.height, _scaled(original.width, bucket.height, original.height))
    else:
        resized = Size(_scaled(original.height, bucket.width, original.width), bucket.width)
    if resized != original:
        image = image.resize((resized.width, resized.height), Image.Resampling.LANCZOS)
    top, left = (resized.height - bucket.height) // 2, (resized.width - bucket.width) // 2
    image = image.crop((left, top, left + bucket.width, top + bucket.height))
    return Cropped(image, original, (top, left), bucket)


def _scaled(length: int, target: int, other: int) -> int:
    """length * target / other, rounded."""
    return (2 * length * target + other) // (2 * other)


@dataclass(frozen=True)
class BucketOrder:
    """Images bucket after bucket: ``order`` are their indices, of which those up to ``ends[k]``
    are of ``sizes[k]``. Buckets without images are left out."""

    order: tuple[int, ...]
    ends: tuple[int, ...]
    sizes: tuple[Size, ...]

    def size_at(self, position: int) -> Size:
        """The bucket of the image at a position in ``order``."""
        return next(s for s, end in zip(self.sizes, self.ends, strict=True) if position < end)


def bucket_order(sizes: Sequence[Size | None], buckets: Sequence[Size]) -> BucketOrder:
    """Each image to its nearest bucket, in its own order within.

    One whose size could not be read (None) is of the first bucket: it is left out when it is read.
    """
    members: list[list[int]] = [[] for _ in buckets]
    for index, size in enumerate(sizes):
        members[0 if size is None else nearest(buckets, size)].append(index)
    order: list[int] = []
    ends, used = [], []
    for bucket, indices in zip(buckets, members, strict=True):
        if indices:
            order += indices
            ends.append(len(order))
            used.append(bucket)
    return BucketOrder(tuple(order), tuple(ends), tuple(used))
