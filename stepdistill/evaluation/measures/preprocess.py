"""What a protocol does to pixels before an extractor sees them, as DMD2's COCO evaluation does it.

Images are (H, W, C) in 0 to 255 and stay so. Offsets are torchvision's ``center_crop``: half of
what is cut off, rounded to even.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...metrics.features import Pixels


def centre_square(pixels: Pixels, size: int) -> Pixels:
    """The largest square in the middle, resized to ``size`` x ``size`` with Lanczos (antialiased).

    Smaller images are enlarged: photograph collections hold some, and the published numbers
    include them.
    """
    height, width = pixels.shape[:2]
    square = _middle(pixels, min(height, width))
    if square.shape[0] == size:
        return square
    grey = square.shape[2] == 1
    image = Image.fromarray(square[:, :, 0] if grey else square)
    resized: Pixels = np.array(image.resize((size, size), Image.Resampling.LANCZOS))
    return resized[:, :, None] if grey else resized


def centre_patch(pixels: Pixels, size: int) -> Pixels:
    """The ``size`` x ``size`` pixels in the middle, not resized; an image with a side below
    ``size`` is left whole, as DMD2's patch FID leaves the small photographs of COCO.
    """
    return pixels if min(pixels.shape[:2]) < size else _middle(pixels, size)


def _middle(pixels: Pixels, size: int) -> Pixels:
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    middle: Pixels = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return middle
