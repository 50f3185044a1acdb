"""The bundled digits world: real data, a good teacher, and figures that can be measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stepdistill.data.digits import digits, digits_data, stratified_labels
from stepdistill.metrics.quality import digits_reference, floor, measure
from stepdistill.sampling import NoiseStreams, sample_teacher
from stepdistill.teachers import WORLDS, built_in_worlds, load_teacher

TEACHER = WORLDS / "digits" / "teacher"


def test_digits_are_the_real_ones() -> None:
    """1,797 images of 10 classes, 8x8, values in [-1, 1] with 17 grey levels."""
    x0, labels = digits()
    assert x0.shape == (1797, 1, 8, 8)
    assert x0.min() == -1
    assert x0.max() == 1
    assert len(x0.unique()) == 17
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(digits_data()) == 1797


@pytest.mark.parametrize("count", [10, 100, 1797, 4_000, 50_000])
def test_labels_are_stratified(count: int) -> None:
    """Every class has floor or ceil of its exact share, and every stretch holds all classes."""
    _, reference = digits_reference()
    labels = stratified_labels(reference.proportions, count)
    share = reference.proportions.double() / 1797 * count
    counts = torch.bincount(labels, minlength=10)
    assert len(labels) == count
    assert (counts - share).abs().max() < 1
    if count >= 4_000:
        first = torch.bincount(labels[:1_000], minlength=10)
        assert (first - share / count * 1_000).abs().max() <= 1


def test_bundles_are_small_and_have_cards() -> None:
    """All worlds together stay under 12 MB, and each bundle says what made it."""
    size = sum(p.stat().st_size for p in WORLDS.rglob("*") if p.is_file())
    assert size < 12 * 2**20
    for world in built_in_worlds():
        for bundle in (WORLDS / world).iterdir():
            assert "Made by" in (bundle / "README.md").read_text()
            assert (bundle / "record.json").exists()


def test_classifier_is_sure_of_real_digits() -> None:
    """The features tell all real digits apart: at least 99.5 % are classified right."""
    classifier, reference = digits_reference()
    predicted = classifier.head(reference.features).argmax(1)
    assert (predicted == reference.labels).float().mean() >= 0.995


def test_floor_falls_with_the_count() -> None:
    """A finite sample of the reference itself inflates the distance by about c/N."""
    few, many = floor(4_000), floor(40_000)
    assert many < few / 5
    assert floor(4_000, seed=1) != few


def test_record_is_of_the_best_setting() -> None:
    """The recorded setting is the grid's lowest, its distance at most 0.006, on 50,000 samples."""
    record = json.loads((TEACHER / "record.json").read_text())
    best = min(record["grid"], key=lambda row: row["fid"])
    assert {row["steps"] for row in record["grid"]} == {9, 18, 40}
    assert {row["guidance_scale"] for row in record["grid"]} == {1.0, 1.5, 2.0}
    assert (record["steps"], record["guidance_scale"]) == (best["steps"], best["guidance_scale"])
    assert record["num_samples"] == 50_000
    assert record["fid"] <= 0.006
    assert record["class_accuracy"] >= 99
    assert record["nfe"] == 2 * record["steps"] - 1


@pytest.mark.slow
def test_teacher_record_can_be_measured_again() -> None:
    """2,000 samples of the recorded setting, less their floor, agree with the record, less its.

    A re-measurement of the whole record takes minutes; the spread at 2,000 is about 0.001.
    """
    record = json.loads((TEACHER / "record.json").read_text())
    teacher = load_teacher("digits")

    def sampler(labels: torch.Tensor, seeds: range) -> torch.Tensor:
        cond = teacher.encode(labels.tolist())
        z = NoiseStreams(seeds).normal(teacher.sample_shape)
        return sample_teacher(teacher, cond, z, record["steps"], record["guidance_scale"])

    quality = measure(sampler, 2_000, seed=record["seed"])
    expected = record["fid"] - record["fid_floor"]
    assert quality.fid - floor(2_000) == pytest.approx(expected, abs=0.0025)
    assert quality.class_accuracy == pytest.approx(record["class_accuracy"], abs=0.8)


def noise(seeds: range) -> torch.Tensor:
    return NoiseStreams(seeds).normal((1, 8, 8))


def test_samples_do_not_depend_on_the_batch_size() -> None:
    """Image i has seed i whatever it is sampled beside; pixels agree to float rounding."""
    teacher = load_teacher("digits")
    cond = teacher.encode([0, 1, 2, 3, 4, 5])
    whole = sample_teacher(teacher, cond, noise(range(6)), steps=3)
    part = sample_teacher(teacher, cond.select(slice(4, 6)), noise(range(4, 6)), steps=3)
    assert torch.allclose(whole[4:], part, atol=1e-4)


def test_teacher_is_frozen() -> None:
    """No weight of a loaded teacher learns, and it is in eval mode."""
    denoiser = load_teacher("digits").denoiser
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not any(m.training for m in denoiser.modules())


def test_worlds_are_packaged() -> None:
    """The folders lie in the package, so that a wheel carries them."""
    assert TEACHER.is_relative_to(Path(__file__).parent.parent / "stepdistill")
