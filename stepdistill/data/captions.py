"""Captions in English: "a large red seven at the top", "a blue five to the right of a three"."""

from __future__ import annotations

from .picks import Picks
from .scenes import COLOURS, Statement

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPENINGS = ("", "", "a picture of", "a drawing of")
KINDS = ("", "", "digit", "number")
MAKES = ("", "", "handwritten")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
PLACE_WORDS = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "centre": ("in the centre", "in the middle"),
}
# how the first of a pair stands to the second, and the second to the first
RELATIONS = {
    ("left", "right"): (("left of", "to the left of"), ("right of", "to the right of")),
    ("top", "bottom"): (("above", "over"), ("below", "under")),
}
MAX_WORDS = 14


def caption(said: Statement, picks: Picks) -> str:
    """A sentence that says ``said`` and nothing else, of at most 14 words."""
    opening = picks.one("opening", OPENINGS)
    digits = [NUMBERS[digit] for digit in said.digits]
    if len(digits) == 1:
        make, kind = picks.one("make", MAKES), picks.one("kind", KINDS)
        size = "" if said.size is None else picks.one("size word", SIZE_WORDS[said.size])
        thing = _thing(make, size, said.colours[0] or "", kind, digits[0])
        if said.positions is None:
            return _joined(opening, thing)
        return _joined(opening, thing, picks.one("place", PLACE_WORDS[said.positions[0]]))
    assert said.positions is not None
    things = [_thing(c or "", digit) for c, digit in zip(said.colours, digits, strict=True)]
    direct, turned = RELATIONS[said.positions[0], said.positions[1]]
    if picks.often("turn", 0.5):
        return _joined(opening, things[1], picks.one("relation", turned), things[0])
    return _joined(opening, things[0], picks.one("relation", direct), things[1])


def vocabulary() -> list[str]:
    """Every word that a caption may hold, sorted."""
    phrases = [*NUMBERS, *OPENINGS, *KINDS, *MAKES, *COLOURS, "a", "an"]
    phrases += [p for words in (*SIZE_WORDS.values(), *PLACE_WORDS.values()) for p in words]
    phrases += [p for both in RELATIONS.values() for words in both for p in words]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _thing(*words: str) -> str:
    thing = _joined(*words)
    return f"an {thing}" if thing.startswith(("orange", "eight")) else f"a {thing}"


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)
