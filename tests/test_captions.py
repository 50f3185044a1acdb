"""Captioned digits: what a caption says is in the scene, and what is in the scene is in the
picture."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import pytest
import torch

from stepdistill.data.captioned_digits import (
    CaptionedDigits,
    Example,
    evaluation_prompts,
    real_pictures,
)
from stepdistill.data.captions import MAX_WORDS, NUMBERS, vocabulary
from stepdistill.data.picks import Picks
from stepdistill.data.rendering import INKS, SIDES, corner, render
from stepdistill.data.scenes import (
    ARRANGEMENTS,
    ATTRIBUTES,
    COLOURS,
    POSITIONS,
    Scene,
    Statement,
    agree,
)

SUM = 22300.5833  # of the first 8 pictures
PROMPTS = "9e8d2ed671779e87"  # of the evaluation prompts, joined by newlines
EXAMPLES = [CaptionedDigits().example(i) for i in range(3_000)]


def understood(text: str) -> Statement:
    """A caption read by a second hand: word by word, knowing nothing of how it was made."""
    words = text.split()
    digits = tuple(NUMBERS.index(w) for w in words if w in NUMBERS)
    ends = [i for i, w in enumerate(words) if w in NUMBERS]
    begins = [0, *(end + 1 for end in ends)]
    colours: tuple[str | None, ...] = tuple(
        next((w for w in words[a:b] if w in COLOURS), None)
        for a, b in zip(begins, ends, strict=False)
    )
    if len(digits) == 2:
        between = set(words[ends[0] + 1 : ends[1]])
        if between & {"right", "below", "under"}:
            digits, colours = digits[::-1], colours[::-1]
        across = between & {"left", "right"}
        return Statement(digits, colours, None, ("left", "right") if across else ("top", "bottom"))
    synonyms = {"little": "small", "big": "large", "middle": "centre"}
    said = {synonyms.get(w, w) for w in words}
    size = next((s for s in SIDES if s in said), None)
    place = next((p for p in ("left", "right", "top", "bottom", "centre") if p in said), None)
    return Statement(digits, colours, size, None if place is None else (place,))


def test_captions_say_what_is_stated() -> None:
    """A reader who sees the sentence alone finds the statement, no more and no less."""
    for example in EXAMPLES:
        assert understood(example.caption.text) == example.caption.said, example.caption.text


def test_scenes_are_as_stated() -> None:
    """Every class that is said is the scene's; flipping one of them is noticed."""
    scenes = torch.stack([e.scene.labels for e in EXAMPLES])
    said = torch.stack([e.caption.said.labels for e in EXAMPLES])
    assert agree(scenes, said).all()
    for attribute in range(len(ATTRIBUTES)):
        wrong = scenes.clone()
        wrong[:, attribute] += 1
        assert torch.equal(agree(wrong, said), said[:, attribute] < 0)


def test_captions_are_short_and_plain() -> None:
    """At most 14 words of fewer than 100, and "an" before a vowel."""
    words = [e.caption.text.split() for e in EXAMPLES]
    assert max(map(len, words)) <= MAX_WORDS
    assert {w for own in words for w in own} == set(vocabulary())
    assert len(vocabulary()) < 100
    for own in words:
        for article, noun in pairwise(own):
            assert (article == "an") == (article in ("a", "an") and noun in ("orange", "eight"))


def test_what_is_open_is_drawn_evenly() -> None:
    """Each class of an attribute is as frequent in scenes as every other of its kind."""
    columns = torch.stack([e.scene.labels for e in EXAMPLES]).T
    for name, column in zip(ATTRIBUTES, columns, strict=True):
        own = column[column >= 0]
        counts = torch.bincount(own, minlength=ATTRIBUTES[name]).double()
        if name == "number":
            assert counts[1] / counts.sum() == pytest.approx(0.4, abs=0.03)
        elif name == "size":  # pairs are small
            assert counts[1] / counts.sum() == pytest.approx(0.3, abs=0.03)
        elif name == "arrangement":
            share = torch.tensor([0.12] * 5 + [0.2] * 2)
            assert (counts / counts.sum() - share).abs().max() < 0.03
        else:
            assert (counts / len(own) * ATTRIBUTES[name] - 1).abs().max() < 0.25, name


def test_open_attributes_vary_for_one_prompt() -> None:
    """So that guidance has something to do: "a three" has all colours, sizes and places."""
    said = Statement((3,), (None,), None, None)
    scenes = [said.scene(Picks("any", i)) for i in range(300)]
    assert {s.colours[0] for s in scenes} == set(COLOURS)
    assert {s.size for s in scenes} == set(SIDES)
    assert len({s.positions for s in scenes}) == 5


def test_samples_are_functions_of_seed_and_index() -> None:
    """Whatever is fetched beside them and however often; other seeds and indices differ."""
    data = CaptionedDigits()
    x0, cond = data.fetch([7, 3, 7])
    again, _ = CaptionedDigits(count=10).fetch([3])
    assert x0.shape == (3, 3, 32, 32)
    assert torch.equal(x0[0], x0[2])
    assert torch.equal(x0[1], again[0])
    assert not torch.equal(x0[0], x0[1])
    assert not torch.equal(CaptionedDigits(seed=1).fetch([3])[0], again)
    assert cond["scene"].shape == cond["said"].shape == (3, len(ATTRIBUTES))


def test_samples_stay_the_same() -> None:
    """The first captions, the sum of the first pictures and the prompts: models depend on them."""
    x0, _ = CaptionedDigits().fetch([*range(8)])
    assert [e.caption.text for e in EXAMPLES[:3]] == [
        "a picture of a handwritten black number five at the top",
        "a picture of a number six at the right",
        "a picture of a blue four",
    ]
    assert float(x0.double().sum()) == pytest.approx(SUM, abs=0.01)
    prompts = evaluation_prompts()
    assert len(prompts) == 500
    assert sha256("\n".join(p.text for p in prompts).encode()).hexdigest()[:16] == PROMPTS


def test_pictures_are_in_range() -> None:
    """White paper is exactly 1, and ink reaches below 0."""
    x0, _ = CaptionedDigits().fetch([*range(200)])
    assert x0.min() >= -1
    assert x0.max() == 1
    assert ((x0 == 1).all(1).float().mean((1, 2)) > 0.3).all()
    assert (x0.amin((1, 2, 3)) < -0.5).all()


def ink(x0: torch.Tensor) -> torch.Tensor:
    """(32, 32) whether a pixel of a picture (3, 32, 32) is inked."""
    return x0.amin(0) < 0


def measured(x0: torch.Tensor) -> tuple[str, str, str]:
    """Colour, size and place of the one digit on a picture: the colour of its darkest quarter, its
    height, and the cell that the middle of its ink is nearest to."""
    mask = ink(x0)
    inked = x0[:, mask].T
    solid = inked[inked.sum(1).argsort()[: len(inked) // 4 + 1]].median(0).values
    inks = 2 * torch.tensor([INKS[colour] for colour in COLOURS]) - 1
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    size = "large" if rows[-1] - rows[0] >= 13 else "small"
    middle = torch.stack([(own[0] + own[-1] + 1) / 2 for own in (rows, columns)])
    cells = torch.tensor([corner(position, SIDES[size]) for position in POSITIONS])
    nearest = (cells + SIDES[size] / 2 - middle).norm(dim=1).argmin()
    return COLOURS[int((inks - solid).norm(dim=1).argmin())], size, POSITIONS[int(nearest)]


def test_single_digits_show_their_attributes() -> None:
    """Colour, size and place can be told from the pixels without a classifier."""
    own = [i for i, example in enumerate(EXAMPLES[:600]) if len(example.scene.digits) == 1]
    pictures, _ = CaptionedDigits().fetch(own)
    right = []
    for i, x0 in zip(own, pictures, strict=True):
        scene = EXAMPLES[i].scene
        shown = (scene.colours[0], scene.size, scene.positions[0])
        right.append([a == b for a, b in zip(measured(x0), shown, strict=True)])
    shares = torch.tensor(right).double().mean(0)
    assert (shares >= 0.99).all(), shares


def test_pairs_do_not_touch() -> None:
    """An empty row or column lies between two digits, and each has its own colour."""
    count = 0
    for i, example in enumerate(EXAMPLES[:500]):
        if len(example.scene.digits) == 1:
            continue
        mask = ink(CaptionedDigits().fetch([i])[0][0])
        lines = mask.any(0 if example.scene.positions == ("left", "right") else 1)[12:20]
        assert not lines.all(), i
        count += 1
    assert count > 100


def test_handwriting_varies() -> None:
    """One scene drawn many times is drawn differently each time."""
    scene = Scene((3,), ("red",), "large", ("centre",))
    pictures = torch.stack([render(scene, Picks("hand", i)) for i in range(50)])
    assert len(torch.unique(pictures.flatten(1), dim=0)) == 50


def test_real_pictures_follow_their_prompt() -> None:
    """By seed, whatever the batch."""
    prompts = evaluation_prompts()[:4]
    whole = real_pictures(prompts, range(10, 14))
    assert torch.equal(whole[2:], real_pictures(prompts[2:], range(12, 14)))
    assert not torch.equal(whole, real_pictures(prompts, range(20, 24)))


def test_arrangements_are_the_places_of_one_and_of_two() -> None:
    """The number of digits follows from the arrangement."""
    assert [len(a) for a in ARRANGEMENTS] == [1] * 5 + [2] * 2
    example: Example = EXAMPLES[0]
    assert example.scene.labels.shape == (len(ATTRIBUTES),)
