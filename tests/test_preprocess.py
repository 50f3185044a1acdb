"""Crops and squares before an extractor, against torchvision and PIL."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import center_crop

from stepdistill.evaluation.measures.preprocess import centre_patch, centre_square


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(9, 9), (9, 10), (10, 9), (11, 14), (30, 13), (5, 8), (33, 64)]
)
@pytest.mark.parametrize("size", [5, 8])
def test_squares_and_crops_are_torchvisions(height: int, width: int, size: int) -> None:
    """For every parity of what is cut off, colour and grey, larger and smaller than asked for."""
    for channels in (3, 1):
        pixels = noise(height, width, channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        square = center_crop(image, min(image.size)).resize((size, size), Image.Resampling.LANCZOS)
        expected = np.array(square).reshape(size, size, channels)
        np.testing.assert_array_equal(centre_square(pixels, size), expected)
        if min(height, width) >= size:
            crop = np.array(center_crop(image, size)).reshape(size, size, channels)
            np.testing.assert_array_equal(centre_patch(pixels, size), crop)


def test_images_smaller_than_a_patch() -> None:
    """Are left whole, as DMD2's patch FID leaves them."""
    small = noise(4, 20)
    assert centre_patch(small, 5) is small


def test_a_partial_can_be_sent_to_a_worker() -> None:
    """They are functions of a module: a worker process can be given them."""
    import pickle

    send = partial(centre_square, size=4)
    sent = pickle.loads(pickle.dumps(send))
    np.testing.assert_array_equal(sent(noise(8, 8)), send(noise(8, 8)))
