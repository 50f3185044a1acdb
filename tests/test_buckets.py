"""Aspect-ratio buckets against SDXL's own table, and what a crop keeps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from stepdistill.data.buckets import bucket_order, crop_to, make_buckets, nearest
from stepdistill.data.captioned_images import Size
from stepdistill.errors import UserError

# Podell et al. 2023, appendix I: height -> widths of the tall half
SDXL = {
    512: (2048, 1984, 1920, 1856),
    576: (1792, 1728, 1664),
    640: (1600, 1536),
    704: (1472, 1408, 1344),
    768: (1344, 1280),
    832: (1216, 1152),
    896: (1152, 1088),
    960: (1088, 1024),
    1024: (1024,),
}
# in the table beside a longer one of the same width: no bucket keeps more of the area
SMALLER = {(704, 1344), (832, 1152), (896, 1088), (960, 1024)}


def test_buckets_are_sdxls() -> None:
    """Its table for 1024 and 64, but for the rows whose short side could be longer."""
    table = {(short, long) for short, longs in SDXL.items() for long in longs} - SMALLER
    table |= {(long, short) for short, long in table}
    buckets = make_buckets(1024, 64)
    assert set(buckets) == table
    assert len(buckets) == len(table)
    ratios = [width / height for height, width in buckets]
    assert ratios == sorted(ratios)


@pytest.mark.parametrize(
    ("resolution", "divisor", "ratio"), [(64, 8, 4), (512, 16, 2.5), (8, 8, 1)]
)
def test_no_bucket_exceeds_the_area(resolution: int, divisor: int, ratio: float) -> None:
    """Nor could its short side be longer, nor its ratio; each is there lying and standing."""
    buckets = make_buckets(resolution, divisor, ratio)
    assert (resolution, resolution) in buckets
    for height, width in buckets:
        short, long = sorted((height, width))
        assert height % divisor == width % divisor == 0
        assert short * long <= resolution**2 < (short + divisor) * long
        assert long <= ratio * short
        assert (width, height) in buckets


def test_the_nearest_bucket_cuts_least() -> None:
    """By trial of all: of the image, scaled to cover the bucket, the greatest part is kept."""
    buckets = make_buckets(256, 32)
    generator = np.random.default_rng(0)
    for height, width in generator.integers(10, 900, (200, 2)).tolist():
        kept = []
        for bucket in buckets:
            scale = max(bucket.height / height, bucket.width / width)
            kept.append(bucket.height * bucket.width / (height * width * scale**2))
        assert kept[nearest(buckets, Size(height, width))] == pytest.approx(max(kept))
        transposed = buckets[nearest(buckets, Size(width, height))]
        assert transposed == buckets[nearest(buckets, Size(height, width))][::-1]


def test_a_crop_is_the_middle_with_its_conditioning() -> None:
    """Without resizing it is the pixels between equal borders, and time_ids tell where."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 31, 3), dtype=np.uint8)
    cropped = crop_to(Image.fromarray(pixels), Size(20, 16))
    assert np.array_equal(np.asarray(cropped.image), pixels[:, 7:23])
    assert cropped.time_ids == (20, 31, 0, 7, 20, 16)
    half = Image.fromarray(pixels).resize((16, 10), Image.Resampling.LANCZOS)
    shrunk = crop_to(Image.fromarray(pixels), Size(10, 16))
    assert np.array_equal(np.asarray(shrunk.image), np.asarray(half))
    assert shrunk.time_ids == (20, 31, 0, 0, 10, 16)
    same = crop_to(Image.fromarray(pixels), Size(20, 31))
    assert np.array_equal(np.asarray(same.image), pixels)
    assert same.time_ids == (20, 31, 0, 0, 20, 31)


def test_a_crop_covers_its_bucket() -> None:
    """Of any size: the image is scaled by one factor until it just covers; a slope stays one."""
    for height, width, bucket in itertools.product(
        (1, 3, 17, 64), (1, 5, 64, 100), (Size(16, 48), Size(32, 32), Size(48, 16))
    ):
        cropped = crop_to(Image.new("RGB", (width, height), (9, 99, 200)), bucket)
        assert cropped.image.size == (bucket.width, bucket.height)
        assert set(cropped.image.getdata()) == {(9, 99, 200)}  # no border is filled
        scale = max(bucket.height / height, bucket.width / width)
        for before, offset, target in zip(
            cropped.original_size, cropped.crop_top_left, bucket, strict=True
        ):
            assert offset == pytest.approx((before * scale - target) / 2, abs=1)
    slope = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (30, 1, 3))
    middle = np.asarray(crop_to(Image.fromarray(slope), Size(15, 30)).image)[7, :, 0]
    np.testing.assert_allclose(middle, 61 + 4 * np.arange(30), atol=2)


def test_the_order_goes_bucket_by_bucket() -> None:
    """Every image once, with its nearest bucket; an unreadable one is among the first."""
    buckets = (Size(8, 2), Size(6, 3), Size(4, 4), Size(2, 8))
    sizes = [Size(5, 5), Size(1, 9), None, Size(90, 10), Size(7, 7), Size(1, 3)]
    plan = bucket_order(sizes, buckets)
    assert plan.order == (2, 3, 0, 4, 1, 5)
    assert plan.ends == (2, 4, 6)
    assert plan.sizes == (buckets[0], buckets[2], buckets[3])
    assert [plan.size_at(i) for i in range(6)] == [plan.sizes[i // 2] for i in range(6)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((1000, 64), "1000 must be a multiple of 64"),
        ((0, 8), "resolution 0"),
        ((8, 16), "8 must be a multiple of 16"),
        ((64, 8, 0.5), "longest_ratio must be at least 1, got 0.5"),
    ],
)
def test_buckets_that_cannot_be_made(given: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_buckets(*given)
