"""Where labels go beside their points, so that none lies over another, a point or a bar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FAR = 60.0  # from its point, at most, in points of 1/72 inch
DIRECTIONS = (0, 90, 270, 45, 315, 180, 135, 225)  # degrees, tried in this order


class Box(NamedTuple):
    """A rectangle, in points from the lower left of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.top <= other.bottom or other.top <= self.bottom)

    def inside(self, other: Box) -> bool:
        """Whether none of it lies outside of ``other``."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def placed(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
) -> list[Box] | None:
    """A box of its size (width, height) for each of ``points``, near it; None if there is no room.

    One after the other, each at the nearest place inside of ``bounds`` that is free: a greedy
    search, from the points with the most neighbours on.
    """
    crowd = [sum(math.dist(a, b) < FAR for b in points) for a in points]
    boxes: dict[int, Box] = {}
    for i in sorted(range(len(points)), key=lambda i: -crowd[i]):
        used = [*taken, *boxes.values()]
        free = (
            box
            for box in _around(points[i], sizes[i])
            if box.inside(bounds) and not any(box.overlaps(other) for other in used)
        )
        found = next(free, None)
        if found is None:
            return None
        boxes[i] = found
    return [boxes[i] for i in range(len(points))]


def _around(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    """Boxes of ``size`` beside ``point``, farther and farther away."""
    x, y = point
    width, height = size
    distance = 6.0
    while distance <= FAR:
        for degrees in DIRECTIONS:
            angle = math.radians(degrees)
            across, up = math.cos(angle), math.sin(angle)
            # the box's edge or corner that faces the point lies at ``distance`` from it
            middle_x = x + distance * across + width / 2 * _sign(across)
            middle_y = y + distance * up + height / 2 * _sign(up)
            left, bottom = middle_x - width / 2, middle_y - height / 2
            yield Box(left, bottom, left + width, bottom + height)
        distance *= 1.35


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)
