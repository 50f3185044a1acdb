"""What may be on a canvas of captioned digits, and what a caption says of it.

A scene has one digit, small or large, in one of five places, or two small ones side by side or one
above the other. Each digit has a colour. All of it is drawn uniformly; a caption says the digits,
the places of a pair, and of the rest what it pleases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .picks import Picks

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
PAIRS = (("left", "right"), ("top", "bottom"))  # places of two digits, in the order of reading
ARRANGEMENTS = (*((position,) for position in POSITIONS), *PAIRS)

# what a label vector holds, with the number of classes of each; -1 where it is not said, or not so
ATTRIBUTES = {
    "number": 2,
    "arrangement": len(ARRANGEMENTS),
    "size": len(SIZES),
    "digit": 10,
    "colour": len(COLOURS),
    "second digit": 10,
    "second colour": len(COLOURS),
}

PAIR = 0.4  # how often a scene has two digits
SAY = 0.6  # how often a caption says a colour, the size, the place of a single digit


@dataclass(frozen=True)
class Scene:
    """Digits in the order of reading (left to right, top to bottom), their colours and places, and
    the size of all."""

    digits: tuple[int, ...]
    colours: tuple[str, ...]
    size: str
    positions: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """(7,), the classes of ATTRIBUTES; -1 for those of a second digit that is not there."""
        return Statement(self.digits, self.colours, self.size, self.positions).labels


@dataclass(frozen=True)
class Statement:
    """What a caption says: as a scene, with None for what it leaves open."""

    digits: tuple[int, ...]
    colours: tuple[str | None, ...]
    size: str | None
    positions: tuple[str, ...] | None

    @property
    def labels(self) -> Tensor:
        """(7,), the classes of ATTRIBUTES; -1 where nothing is said."""
        arrangement = -1 if self.positions is None else ARRANGEMENTS.index(self.positions)
        size = -1 if self.size is None else SIZES.index(self.size)
        labels = [len(self.digits) - 1, arrangement, size]
        for digit, colour in zip(self.digits, self.colours, strict=True):
            labels += [digit, -1 if colour is None else COLOURS.index(colour)]
        return torch.tensor(labels + [-1] * (len(ATTRIBUTES) - len(labels)))

    def scene(self, picks: Picks) -> Scene:
        """A scene of which this is true, the rest drawn uniformly."""
        return Scene(
            digits=self.digits,
            colours=tuple(
                colour or picks.at(place).one("open colour", COLOURS)
                for place, colour in enumerate(self.colours)
            ),
            size=self.size or ("small" if len(self.digits) == 2 else picks.one("open size", SIZES)),
            positions=self.positions or (picks.one("open position", POSITIONS),),
        )


def draw_statement(picks: Picks) -> Statement:
    """What is said is chosen first, and then its value; the scene follows from it by ``scene``."""
    count = 2 if picks.often("pair", PAIR) else 1
    places = [picks.at(place) for place in range(count)]
    digits = tuple(p.number("digit", 10) for p in places)
    colours = tuple(
        p.one("colour", COLOURS) if p.often("say colour", SAY) else None for p in places
    )
    if count == 2:
        return Statement(digits, colours, None, picks.one("pair's positions", PAIRS))
    size = picks.one("size", SIZES) if picks.often("say size", SAY) else None
    position = picks.one("position", POSITIONS) if picks.often("say position", SAY) else None
    return Statement(digits, colours, size, None if position is None else (position,))


def agree(labels: Tensor, said: Tensor) -> Tensor:
    """(B,) whether label vectors (B, 7) have every class that ``said`` (B, 7) has one for."""
    return ((labels == said) | (said < 0)).all(1)
