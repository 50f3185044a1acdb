"""Choices without a generator's state: each is a hash of (seed, index, what is chosen)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..draws import key

T = TypeVar("T")


class Picks:
    """The choices that make one sample. Equal parts give equal choices, for ever and everywhere;
    asking for one choice more or in another order changes no other."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def at(self, *more: object) -> Picks:
        """The choices of a part of the sample."""
        return Picks(*self.parts, *more)

    def number(self, what: str, count: int) -> int:
        """Uniform over 0 to ``count`` - 1."""
        return key(*self.parts, what) % count

    def one(self, what: str, options: Sequence[T]) -> T:
        """Uniform over ``options``."""
        return options[self.number(what, len(options))]

    def often(self, what: str, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(what, 0, 1) < probability

    def uniform(self, what: str, low: float, high: float) -> float:
        """U[low, high)."""
        return low + (high - low) * (key(*self.parts, what) / 2**63)
