"""Scenes as pictures: scikit-learn's 8x8 digits, enlarged smoothly and inked on white paper."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .digits import NUM_CLASSES, digits
from .picks import Picks
from .scenes import POSITIONS, Scene

CANVAS = 32  # pixels, height and width
SIDES = {"small": 15, "large": 22}  # pixels of a digit's cell: 8x8 and a margin of one around
INKS = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.08, 0.58, 0.20),
    "blue": (0.10, 0.28, 0.88),
    "orange": (1.00, 0.58, 0.05),
    "purple": (0.55, 0.12, 0.68),
    "black": (0.12, 0.12, 0.12),
}  # RGB in [0, 1]
INK_SPREAD = 0.05  # each channel of an ink is off by up to this much
JITTER = 1  # pixels that a digit may be off its place
CONTRAST = 1.6  # the enlarged strokes' edges are this much steeper


@cache
def strokes(size: str) -> Tensor:
    """How much ink covers each pixel, in [0, 1], (1797, side, side): bicubic, edges steepened."""
    x0, _ = digits()
    ink = F.pad((x0 + 1) / 2, (1, 1, 1, 1))
    coverage = F.interpolate(ink, size=2 * (SIDES[size],), mode="bicubic")
    return ((coverage - 0.5) * CONTRAST + 0.5).clamp(0, 1)[:, 0]


@cache
def images_of_class() -> tuple[list[int], ...]:
    """The source images of each digit."""
    _, labels = digits()
    return tuple((labels == digit).nonzero()[:, 0].tolist() for digit in range(NUM_CLASSES))


def render(scene: Scene, picks: Picks) -> Tensor:
    """(3, 32, 32) in [-1, 1]. ``picks`` choose the handwriting, the ink and the exact places."""
    canvas = torch.ones(3, CANVAS, CANVAS)
    side, coverage = SIDES[scene.size], strokes(scene.size)
    for place, digit in enumerate(scene.digits):
        own = picks.at("render", place)
        image = coverage[own.one("image", images_of_class()[digit])]
        ink = torch.tensor(
            [
                own.uniform(channel, value - INK_SPREAD, value + INK_SPREAD)
                for channel, value in zip("rgb", INKS[scene.colours[place]], strict=True)
            ]
        )
        top, left = (
            start + own.number(axis, 2 * JITTER + 1) - JITTER
            for axis, start in zip("yx", corner(scene.positions[place], side), strict=True)
        )
        paper = canvas[:, top : top + side, left : left + side]
        paper += image * ((2 * ink.clamp(0, 1) - 1)[:, None, None] - paper)
    return canvas


def corner(position: str, side: int) -> tuple[int, int]:
    """(top, left) of a cell of ``side`` pixels; JITTER stays within the canvas."""
    assert position in POSITIONS
    near, middle, far = JITTER, (CANVAS - side) // 2, CANVAS - side - JITTER
    top = {"top": near, "bottom": far}.get(position, middle)
    left = {"left": near, "right": far}.get(position, middle)
    return top, left
