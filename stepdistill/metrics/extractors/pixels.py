"""What extractors do to 8-bit images before their networks see them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..features import Pixels

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # means and deviations of [0, 1]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def colour(pixels: Pixels) -> Pixels:
    """(H, W, 3) of grey (H, W, 1) or of colour."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def centre_square(pixels: Pixels) -> Pixels:
    """The largest square in the middle; an odd pixel is left out at the bottom or the right."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def bicubic(pixels: Pixels, side: int) -> Pixels:
    """(side, side, 3): PIL's antialiased bicubic resize, rounded to 8 bits."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def tensorflow_bilinear(pixels: Pixels, side: int) -> Tensor:
    """(3, side, side) in 0 to 255, float32: TensorFlow 1's bilinear resize, which StyleGAN, EDM and
    ADM measure with. Sample i lies at i size / side, without antialiasing or half-pixel centres.
    """
    x = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    for axis in (2, 1):
        size = x.shape[axis]
        place = torch.arange(side) * torch.tensor(size / side, dtype=torch.float32)
        low = place.long()
        share = (place - low).reshape(-1, *[1] * (2 - axis))
        high = (low + 1).clamp(max=size - 1)
        below, above = x.index_select(axis, low).float(), x.index_select(axis, high).float()
        x = below + (above - below) * share
    return x


def normalised(pixels: Pixels, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """(3, H, W), float32: (pixels / 255 - mean) / deviation."""
    mean, deviation = (torch.tensor(s).reshape(3, 1, 1) for s in statistics)
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    return (x - mean) / deviation
