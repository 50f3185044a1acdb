"""The bundled text-to-image teachers: stock folders, figures measured again, students."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here
from safetensors.torch import load_file
from torch import Tensor

from evals.caption_students import main as measure_students
from stepdistill import presets
from stepdistill.captioned_world import CAPTIONED, captioned_data, teacher_sampler
from stepdistill.conditioning import Conditioning
from stepdistill.data.captioned_digits import CaptionedDigits, evaluation_prompts
from stepdistill.data.captioned_latents import CaptionedLatents
from stepdistill.data.scenes import agree
from stepdistill.distil import build_method, data, distil, read_settings
from stepdistill.distil.options import DistilOptions
from stepdistill.distil.validation import evaluation
from stepdistill.draws import Draws
from stepdistill.metrics.extractors.scenes import load_scene_classifier
from stepdistill.plans import StepPlan
from stepdistill.sampling import NoiseStreams, sample_student
from stepdistill.schedules import FlowSchedule, VPSchedule
from stepdistill.teachers import (
    CARD,
    WORLDS,
    LoadOptions,
    Stored,
    Teacher,
    built_in_worlds,
    load_encoders,
    load_teacher,
)
from stepdistill.times import UniformTimes
from trainers.text_teacher import main as train

ALONE = """
import sys, torch
from diffusers import DiffusionPipeline
folder, prompt, tokens = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
given = {"max_sequence_length": int(tokens)} if tokens else {}
latents = pipeline(
    prompt, num_inference_steps=4, guidance_scale=2.0, output_type="latent",
    generator=torch.Generator().manual_seed(0), **given,
)[0]
torch.save(latents, "latents.pt")
assert not any(name.split(".")[0] == "stepdistill" for name in sys.modules)
"""


RECORDS = Path(__file__).parents[1] / "evals" / "records"
NAMES = [name for name in CAPTIONED if name in built_in_worlds()]


@cache
def loaded(name: str) -> Teacher:
    return load_teacher(name)


def record(name: str) -> dict[str, Any]:
    """What was measured of a bundled teacher."""
    found: dict[str, Any] = json.loads((WORLDS / name / "teacher" / "record.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_process_without_this_code_loads_the_bundle(name: str, tmp_path: Path) -> None:
    """DiffusionPipeline.from_pretrained alone, and its samples are those of our teacher."""
    teacher, prompt = loaded(name), evaluation_prompts()[0].text
    tokens = str(teacher.options.max_tokens or "")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(WORLDS / name / "teacher"), prompt, tokens]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    z = NoiseStreams([0]).normal(teacher.sample_shape)
    x0 = teacher.family.sample(teacher, teacher.guided(2.0), z, teacher.encode([prompt]), 4)
    assert torch.allclose(torch.load(tmp_path / "latents.pt"), x0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_is_small_and_runs_in_float32(name: str) -> None:
    """Every weight is stored in float16; every part computes in float32."""
    for path in (WORLDS / name / "teacher").rglob("*.safetensors"):
        assert all(weight.dtype == torch.float16 for weight in load_file(path).values()), path
    for part, module in loaded(name).pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            assert next(module.parameters()).dtype == torch.float32, part


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_starts_from_pure_noise(name: str) -> None:
    """alpha(1) = 0: zero terminal SNR of the U-Net, and the flow's."""
    schedule = loaded(name).denoiser.schedule
    assert isinstance(schedule, {"digits-t2i": VPSchedule, "digits-flow": FlowSchedule}[name])
    assert float(schedule(torch.ones(1))[0]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_the_best_guidance(name: str) -> None:
    """The recorded figures are those of the grid's lowest distance and highest accuracy."""
    found = record(name)
    grid = found["grid"]
    assert [row["guidance_scale"] for row in grid] == [1.0, 1.5, 2.0, 3.0, 5.0]
    assert found["guidance_scale"] == min(grid, key=lambda row: row["fid"])["guidance_scale"]
    assert found["most_accurate"] == max(grid, key=lambda row: row["caption_accuracy"])
    assert found["fid"] > found["fid_floor"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_accuracy_is_measured_again(name: str) -> None:
    """The grid's most accurate guidance on the first prompts: within three standard errors."""
    count, teacher, expected = 250, loaded(name), record(name)["most_accurate"]
    sampler = teacher_sampler(teacher, expected["steps"], expected["guidance_scale"])
    share = accuracy(sampler(evaluation_prompts()[:count], range(count)))
    p = expected["caption_accuracy"] / 100
    error = 100 * (p * (1 - p) / count) ** 0.5
    assert share == pytest.approx(100 * p, abs=3 * error)


def accuracy(x0: Tensor) -> float:
    """Percent of pictures that show all that the first prompts say."""
    said = torch.stack([prompt.said.labels for prompt in evaluation_prompts()[: len(x0)]])
    classifier = load_scene_classifier()
    return 100 * float(agree(classifier.labels(classifier.features(x0)), said).float().mean())


def test_latents_are_the_data_sets_pictures(tmp_path: Path) -> None:
    """Row i is picture i, encoded, with its caption; a file gives the same back."""

    def halves(pixels: Tensor) -> Tensor:
        return pixels[:, :, ::2, ::2] / 2

    made = CaptionedLatents.of(halves, 7)
    data = CaptionedDigits()
    assert torch.equal(made.x0, halves(data.fetch([*range(7)])[0]))
    assert made.captions[3] == data.example(3).caption.text
    made.save(tmp_path / "some" / "latents.safetensors")
    again = CaptionedLatents.load(tmp_path / "some" / "latents.safetensors")
    assert torch.equal(again.x0, made.x0)
    assert again.captions == made.captions

    def lengths(texts: Sequence[str]) -> Conditioning:
        return Conditioning({"length": torch.tensor([len(text) for text in texts])})

    x0, cond = again.told(lengths).fetch([4, 2])
    assert x0 is not None
    assert torch.equal(x0, made.x0[[4, 2]])
    assert cond["length"].tolist() == [len(made.captions[4]), len(made.captions[2])]


def test_uniform_times_reach_pure_noise() -> None:
    """U(0, 1] on a table of ten steps: each step as often, the last one too."""
    schedule = VPSchedule(torch.linspace(0.9, 0.0, 10))
    t = UniformTimes().draw(schedule, Draws(0, 1, "generator", range(1)), 20_000)
    shares = torch.bincount((t * 10).round().long(), minlength=11) / len(t)
    assert shares[0] == 0
    assert (shares[1:] - 0.1).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("form", "tokens"), [("unet", None), ("flow", 1)])
def test_training_writes_a_stock_teacher(form: str, tokens: int | None, tmp_path: Path) -> None:
    """Two steps on bundled parts: a folder in float16 that loads, hears prompts, and has a card."""
    parts = WORLDS / "digits-t2i" / "teacher"
    pictures = torch.randn(16, 4, 8, 8)
    CaptionedLatents(pictures, ("a red seven",) * 16).save(tmp_path / "latents.safetensors")
    given = ["--vae", str(parts / "vae"), "--text", str(parts), "--form", form]
    small = ["--latents", str(tmp_path / "latents.safetensors"), "--width", "8", "--layers", "1"]
    steps = ["--max_steps", "2", "--batch_size", "8", "--output", str(tmp_path / "run")]
    train([*given, *small, *steps])
    folder = tmp_path / "run" / "teacher"
    teacher = load_teacher(folder)
    assert teacher.options.max_tokens == tokens
    seven, null = teacher.encode(["a red seven", ""])["prompt_embeds"]
    assert len(seven) == 16 + (tokens or 0)
    assert not torch.equal(seven[:16], null[:16])
    assert torch.equal(seven[16:], null[16:])  # the flow teacher's T5 says nothing
    card = json.loads((folder / CARD).read_text())
    assert card["settings"]["form"] == form
    assert teacher.examples(1) == [evaluation_prompts()[0].text]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_dmd2_takes_the_worlds_own_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train dmd2 --teacher NAME`` needs no data: real latents for the GAN, captions measured."""
    check_exports_here(monkeypatch)
    monkeypatch.setattr(data, "captioned_data", lambda teacher: captioned_data(teacher, 20))
    given = ["--teacher", name, "--output", str(tmp_path / "run"), "--max_steps", "3"]
    small = ["--batch_size", "8", "--evaluate_samples", "1000", "--sample_every", "0"]
    result = distil("dmd2", [*given, *small])
    assert {"fid", "caption_accuracy", "diversity"} <= result.metrics.keys()
    teacher = load_teacher(name)
    student = load_teacher(tmp_path / "run" / "student")
    cond, shape = teacher.encode(teacher.examples(2)), teacher.sample_shape
    x0 = sample_student(student.denoiser, StepPlan.uniform(1), cond, shape, NoiseStreams([0, 1]))
    assert x0.isfinite().all()
    row = measured_as_a_user(name, tmp_path)
    assert row["fid"] == pytest.approx(result.metrics["fid"], rel=1e-3)
    assert row["caption_accuracy"] == pytest.approx(result.metrics["caption_accuracy"], abs=0.3)


def test_students_of_precomputed_samples_are_measured_too() -> None:
    """A teacher without encoders gets them for the evaluation prompts: the same figures."""
    options = read_settings("dmd2", ["--teacher=digits-t2i", "--output=run"])
    whole = loaded("digits-t2i")
    kept = Stored(whole.null_cond, whole.shown(4))
    found = []
    for teacher in (whole, load_teacher("digits-t2i", stored=kept)):
        method = build_method("dmd2", options, teacher)
        given = replace(options.get(DistilOptions), evaluate_samples=60)
        evaluate = evaluation(given, method, teacher, LoadOptions())
        assert evaluate is not None
        found.append(evaluate())
    assert found[0]["caption_accuracy"] == found[1]["caption_accuracy"]
    assert found[0]["fid"] == pytest.approx(found[1]["fid"], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_precomputed_prompts_are_as_long_as_the_teachers(name: str) -> None:
    """Encoders alone read the teacher's card too: the same conditionings, token for token."""
    prompts = ["a red two", "a large blue seven at the top"]
    cond, encoded = loaded(name).encode(prompts), load_encoders(name).encode(prompts)
    assert {k: v.shape for k, v in encoded.items()} == {k: v.shape for k, v in cond.items()}
    assert all(torch.equal(encoded[key], cond[key]) for key in cond)
    kept = Stored(loaded(name).null_cond, cond)
    assert load_teacher(name, stored=kept).options == loaded(name).options


def measured_as_a_user(name: str, place: Path) -> dict[str, Any]:
    """The row of ``caption_students`` for the run in ``place``, at the count of its evaluation."""
    kept = {**record(name), "num_samples": 1000, "fid": 0.7, "fid_floor": 0.2}
    (place / "record.json").write_text(json.dumps(kept))
    given = ["--teacher", str(place), "--students", str(place / "run" / "student")]
    for _ in range(2):  # the second replaces the first
        measure_students([*given, "--output", str(place / "rows.json")])
    [row] = json.loads((place / "rows.json").read_text())["students"]
    best = kept["most_accurate"]["caption_accuracy"]
    assert row["fid_ratio"] == pytest.approx((row["fid"] - 0.2) / 0.5)
    assert row["accuracy_gain"] == pytest.approx(row["caption_accuracy"] - best)
    assert (row["nfe"], row["num_samples"]) == (1, 1000)
    assert row["pipeline"] == type(loaded(name).pipeline).__name__
    return dict(row)


@pytest.mark.parametrize("name", CAPTIONED)
@pytest.mark.parametrize(("given", "times"), [((), None), (("--steps=4",), (1, 0.75, 0.5, 0.25))])
def test_presets_of_one_step_and_of_several(
    name: str, given: tuple[str, ...], times: tuple[float, ...] | None
) -> None:
    """One step starts a little before t = 1, several at it; options given win."""
    flags = ["--teacher", name, "--output=run", *given, "--method.critic_lr=0.25"]
    method = build_method("dmd2", read_settings("dmd2", flags), loaded(name))
    if times is None:
        (start,) = method.plan.times
        assert 0.5 < start < 1
    else:
        assert method.plan.times == times
    assert method.learning_rates["critic"] == 0.25
    assert method.learning_rates["generator"] > 2e-4


@pytest.mark.parametrize("name", CAPTIONED)
def test_the_measured_students_are_those_of_the_presets(name: str) -> None:
    """README's table is of runs with today's defaults: as many iterations, to as many calls."""
    rows = json.loads((RECORDS / f"{name}.json").read_text())["students"]
    assert {row["nfe"] for row in rows} == {1, 4}
    for row in rows:
        assert row["iteration"] == presets.of(name, row["method"], row["nfe"])["max_steps"]


def test_real_latents_decode_to_what_their_captions_say() -> None:
    """The world's data, through the bundled autoencoder, is read right by the classifier."""
    teacher = loaded("digits-t2i")
    data = captioned_data(teacher, 60)
    assert data.x0 is not None
    classifier = load_scene_classifier()
    features = classifier.features(teacher.decode(data.x0))
    examples = [CaptionedDigits().example(index) for index in range(60)]
    said = torch.stack([example.caption.said.labels for example in examples])
    assert agree(classifier.labels(features), said).float().mean() > 0.95
    cond = teacher.encode([example.caption.text for example in examples])
    assert torch.allclose(data.cond["prompt_embeds"], cond["prompt_embeds"], atol=1e-5)
