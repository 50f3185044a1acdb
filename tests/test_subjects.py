"""The models that ``stepdistill eval`` measures: whose pipeline is called, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from diffusers import ConsistencyModelPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny import tiny_teacher_folder
from transformers import CLIPConfig, CLIPImageProcessor

from evals.generate import Options, rows_of
from stepdistill.evaluation.models.foreign import ForeignPipeline
from stepdistill.evaluation.models.subject import Subject, load_subject
from stepdistill.sources import folder_of
from stepdistill.students import SampledByFamily, load_student


def evaluated(model: Path, place: Path, *more: object) -> dict[str, Any]:
    """The record of four samples."""
    output = place / "o.json"
    assert run("eval", model, "--num", 4, "--output", output, *more) == 0
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def test_someone_elses_consistency_model_is_sampled_by_its_pipeline(tmp_path: Path) -> None:
    """Without our card a ConsistencyModelPipeline is no EDM teacher: one call of its own pipeline,
    as it takes one unless told otherwise. With the card it is one, and Heun's method samples it."""
    model = tiny_teacher_folder(tmp_path / "model", null_class=None, num_class_embeds=10)
    subject = load_subject(str(model))
    assert (subject.role, subject.steps, subject.model.num_classes) == ("other", 1, 10)
    pipeline = ConsistencyModelPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    seeds, labels = [3, 4], [7, 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    own = pipeline(2, labels, num_inference_steps=1, generator=generators, output_type="np")
    expected = torch.from_numpy(own.images).movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(subject.sample(labels, seeds), expected)
    record = evaluated(model, tmp_path, "--protocol", "digits")
    assert (record["model"]["role"], record["sampling"]["calls"]) == ("other", 1)
    assert any("taken for a consistency model" in note for note in record["notes"])
    ours = load_subject(str(tiny_teacher_folder(tmp_path / "ours")))
    assert isinstance(ours.model, SampledByFamily)
    assert (ours.role, ours.steps) == ("teacher", 18)


def test_it_is_shown_beside_a_student_as_its_pipeline_samples_it(tmp_path: Path) -> None:
    """``sample --compare`` takes one step of their consistency model, 18 of our teacher."""
    given = {"null_class": None, "num_class_embeds": 10}
    theirs = tiny_teacher_folder(tmp_path / "theirs", **given)
    ours = tiny_teacher_folder(tmp_path / "ours")
    for model, label in ((theirs, "teacher, 1 step"), (ours, "teacher, 18 steps")):
        options = Options(str(theirs), compare=str(model))
        assert rows_of(options, load_student(theirs))[0].label == label


def test_a_safety_checker_blackens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that brings one is measured without, or black images would enter the value."""
    built_in = StableDiffusionPipeline.from_pretrained(folder_of("digits-t2i"))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = CLIPConfig(
        text_config={**small, "intermediate_size": 8, "vocab_size": 9, "projection_dim": 4},
        vision_config={**small, "intermediate_size": 8, "image_size": 32, "patch_size": 16},
        projection_dim=4,
    )
    checked = StableDiffusionPipeline(
        **{
            name: built_in.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")
        },
        scheduler=built_in.scheduler,
        safety_checker=StableDiffusionSafetyChecker(towers),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )
    checked.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(StableDiffusionSafetyChecker, "forward", pytest.fail)
    given = ("--protocol", "captioned-digits", "--steps", 1, "--metrics", "caption_accuracy")
    record = evaluated(tmp_path / "model", tmp_path, *given)
    assert any("safety checker" in note for note in record["notes"])
    assert any("in 1 steps, and its pipeline takes 50" in note for note in record["notes"])


def test_no_memory_for_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with what to make smaller."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Subject, "sample", full)
    model = tiny_teacher_folder(tmp_path / "model")
    given = ("--protocol", "digits", "--num", 40, "--batch_size", 20)
    assert run("eval", model, *given, "--output", tmp_path / "o.json") == 1
    said = capsys.readouterr().err
    assert "no memory for 20 samples at a time: remove" in said
    assert "smaller --batch_size" in said


def test_a_pipeline_that_takes_frames_samples_videos() -> None:
    """Also one of someone else's."""

    class OfVideos:
        def __call__(self, prompt: str, num_frames: int = 16) -> None: ...

    class OfImages:
        def __call__(self, prompt: str) -> None: ...

    for pipeline, expected in ((OfVideos(), True), (OfImages(), False)):
        model = ForeignPipeline(pipeline)
        assert Subject("x", Path("x"), model, "other", 1, {}, "float32").of_videos is expected
