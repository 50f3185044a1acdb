"""Measuring captioned samples: right ones score well, and each kind of wrong one worse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F

from stepdistill.data.captioned_digits import (
    Caption,
    CaptionedDigits,
    evaluation_prompts,
    real_pictures,
)
from stepdistill.data.picks import Picks
from stepdistill.data.rendering import render
from stepdistill.data.scenes import COLOURS, Scene
from stepdistill.errors import UserError
from stepdistill.evaluation.references.stored import Stored
from stepdistill.metrics.caption_quality import (
    CAPTION_REFERENCE,
    CaptionReference,
    CaptionSampler,
    caption_floor,
    caption_reference,
    measure_captioned,
)
from stepdistill.metrics.extractors.scenes import (
    SCENE_CLASSIFIER,
    accuracies,
    load_scene_classifier,
)
from stepdistill.metrics.features import digest
from trainers.caption_classifier import FRESH
from trainers.caption_classifier import main as train

T = TypeVar("T")
COUNT = 1_000  # two of each prompt


def wrong(change: Callable[[Scene], Scene]) -> CaptionSampler:
    """Real pictures of scenes that were changed."""

    def sampler(prompts: Sequence[Caption], seeds: range) -> torch.Tensor:
        each = [(p.said.scene(Picks("w", s)), s) for p, s in zip(prompts, seeds, strict=True)]
        return torch.stack([render(change(scene), Picks("w", seed)) for scene, seed in each])

    return sampler


def recoloured(scene: Scene) -> Scene:
    """The first digit in the next colour."""
    other = COLOURS[(COLOURS.index(scene.colours[0]) + 1) % len(COLOURS)]
    return replace(scene, colours=(other, *scene.colours[1:]))


def renumbered(scene: Scene) -> Scene:
    """The last digit one higher."""
    return replace(scene, digits=(*scene.digits[:-1], (scene.digits[-1] + 1) % 10))


def swapped(scene: Scene) -> Scene:
    """A pair in the other order."""
    return replace(scene, digits=scene.digits[::-1], colours=scene.colours[::-1])


def test_classifier_is_as_recorded() -> None:
    """On other fresh scenes than the record's: all that is said is found in 98 % at least."""
    record = json.loads((SCENE_CLASSIFIER.parent / "record.json").read_text())
    found = accuracies(load_scene_classifier(), CaptionedDigits(count=1_000, seed=2))
    assert found["caption_accuracy"] >= 0.98
    for name, share in record["accuracy"].items():
        assert found[name] == pytest.approx(share, abs=0.012), name


@pytest.mark.slow
def test_real_pictures_are_near_the_floor() -> None:
    """Other real pictures score what real pictures score, and as diverse."""
    floor = caption_floor(COUNT)
    quality = measure_captioned(real_pictures, COUNT, seed=10_000)
    assert quality.fid == pytest.approx(floor.fid, rel=0.3)
    assert quality.fid != floor.fid
    assert quality.caption_accuracy >= 98
    assert quality.diversity == pytest.approx(1, abs=0.06)
    assert measure_captioned(real_pictures, COUNT, seed=10_000) == quality


@pytest.mark.slow
def test_wrong_pictures_lower_the_accuracy() -> None:
    """A wrong colour fails where a colour is said, a wrong digit always, an order where it is
    two different things."""
    said = [p.said for p in evaluation_prompts()]
    open_colour = 100 * sum(s.colours[0] is None for s in said) / len(said)
    single = 100 * sum(len(s.digits) == 1 for s in said) / len(said)
    assert measure_captioned(wrong(lambda scene: scene), 500).caption_accuracy >= 98
    assert measure_captioned(wrong(recoloured), 500).caption_accuracy == pytest.approx(
        open_colour, abs=2
    )
    assert measure_captioned(wrong(renumbered), 500).caption_accuracy <= 1
    assert single - 2 <= measure_captioned(wrong(swapped), 500).caption_accuracy <= single + 5


class OneHand(Picks):
    """Always the first handwriting of a digit; all else is chosen as ever."""

    def at(self, *more: object) -> Picks:
        return OneHand(*self.parts, *more)

    def one(self, what: str, options: Sequence[T]) -> T:
        return options[0] if what == "image" else super().one(what, options)


def blurred(prompts: Sequence[Caption], seeds: range) -> torch.Tensor:
    padded = F.pad(real_pictures(prompts, seeds), (1, 1, 1, 1), value=1.0)
    return F.avg_pool2d(padded, 3, stride=1)


def pale(prompts: Sequence[Caption], seeds: range) -> torch.Tensor:
    return 0.7 * real_pictures(prompts, seeds) + 0.3


def in_one_hand(prompts: Sequence[Caption], seeds: range) -> torch.Tensor:
    each = [(p, OneHand("real picture", seed)) for p, seed in zip(prompts, seeds, strict=True)]
    return torch.stack([render(p.said.scene(picks), picks) for p, picks in each])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [blurred, pale, in_one_hand])
def test_worse_pictures_are_farther(sampler: CaptionSampler) -> None:
    """Blur, pale ink and one handwriting for all show what is said and are told from real ones.

    (Measured: 1.8, 1.2 and 0.7 above a floor of 0.2.)
    """
    quality = measure_captioned(sampler, COUNT)
    assert quality.caption_accuracy >= 94
    assert quality.fid > 3 * caption_floor(COUNT).fid


@pytest.mark.slow
def test_diversity_is_within_a_prompt() -> None:
    """One picture for each prompt has none; a blank page shows nothing that is said."""

    def one_each(prompts: Sequence[Caption], seeds: range) -> torch.Tensor:
        return torch.cat([real_pictures([p], range(5, 6)) for p in prompts])

    same = measure_captioned(one_each, COUNT)
    assert same.diversity == pytest.approx(0, abs=1e-6)
    assert same.caption_accuracy >= 98
    assert measure_captioned(in_one_hand, COUNT).diversity < 0.95
    blank = measure_captioned(lambda prompts, _: torch.ones(len(prompts), 3, 32, 32), COUNT)
    assert blank.caption_accuracy <= 5


@pytest.mark.slow
def test_floor_falls_with_the_count() -> None:
    """About c/N."""
    assert caption_floor(4_000).fid < caption_floor(COUNT).fid / 2


@pytest.mark.slow
def test_reference_is_of_this_classifier() -> None:
    """The statistics were measured with the classifier that lies beside them, on these prompts."""
    record = json.loads((CAPTION_REFERENCE.parent / "record.json").read_text())
    assert record["classifier_sha256"] == digest(SCENE_CLASSIFIER)
    assert record["prompts"] == [prompt.text for prompt in evaluation_prompts()]
    assert record["num_samples"] == caption_reference()[1].statistics.count == 50_000
    assert Stored.open(CAPTION_REFERENCE).statistics(None).mean.shape == (64,)
    by_count = {floor["num_samples"]: floor for floor in record["floors"]}
    assert caption_floor(2_000).fid == pytest.approx(by_count[2_000]["fid"], rel=0.01)


def test_a_reference_needs_two_pictures_a_prompt() -> None:
    """A spread of one picture would be NaN."""
    with pytest.raises(UserError, match="at least 1,000"):
        CaptionReference.of(torch.randn(999, 64))


@pytest.mark.slow
def test_training_writes_a_classifier(tmp_path: Path) -> None:
    """A few iterations lower the loss; the stored weights load and are what the record is of."""
    options = ("--max_steps=30", "--lr_warmup=1", "--lr_decay=1", "--log_every=1")
    train([f"--output={tmp_path}", "--batch_size=32", "--test_samples=200", *options])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["generator/loss"] < lines[0]["generator/loss"] - 1
    record = json.loads((tmp_path / "classifier" / "record.json").read_text())
    loaded = load_scene_classifier(tmp_path / "classifier" / "model.safetensors")
    fresh = CaptionedDigits(count=200, seed=FRESH)
    assert accuracies(loaded, fresh) == pytest.approx(record["accuracy"])
    assert record["accuracy"]["number"] > 0.9
