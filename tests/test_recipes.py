"""The recipes: what each one says, and that it runs, dry, on a tiny twin of its teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import check_exports_here, draw_no_report, run
from PIL import Image
from tiny_pipelines import CALLS, PIPELINES

from stepdistill.runs import read_metrics

FOLDER = Path(__file__).parent.parent / "trainers" / "recipes"
# recipe -> its teacher's tiny twin
TWINS = {
    "sd15-1step": "sd15",
    "sd15-1step-gan": "sd15",
    "sd15-1step-stages": "sd15",
    "sdxl-1step-warmup": "sdxl",
    "sdxl-1step": "sdxl",
    "sdxl-4step": "sdxl",
    "sdxl-4step-fdiv": "sdxl",
    "sdxl-4step-lora": "sdxl",
    "sdxl-4step-lora-24gb": "sdxl",
    "sd3-4step-lora": "sd3",
    "pixart-1step": "pixart-alpha",
    "sana-4step": "sana",
    "flux-4step-lora": "flux",
    "qwen-image-4step-lora": "qwen-image",
    "wan-4step-lora": "wan-t2v",
}


def read(name: str) -> tuple[str, str, dict[str, Any]]:
    """(text, method, settings) of a recipe; the method stands in its own command."""
    text = (FOLDER / f"{name}.yaml").read_text()
    command = re.search(r"^# stepdistill train (\w+) --config (\S+)", text, re.MULTILINE)
    assert command is not None
    assert command[2] == f"{name}.yaml"
    return text, command[1], yaml.safe_load(text)


def test_every_recipe_has_a_twin() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_a_recipe_names_its_source_and_divides_its_batch(name: str) -> None:
    text, _, settings = read(name)
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert "# Source: " in text
    assert settings["batch_size"] % settings["shards"] == 0
    assert settings["shards"] % settings.get("accumulate", 1) == 0


def test_the_command_lists_and_prints_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(TWINS, key="{}.yaml".format)
    assert run("recipes", "sana-4step") == 0
    assert capfd.readouterr().out == (FOLDER / "sana-4step.yaml").read_text()
    assert run("recipes", "sana") == 2
    assert "sana-4step" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_a_recipe_runs_dry(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own samples are precomputed, one iteration updates every role, and the export is checked.

    Only the teacher, its size and the batch are other than in the file.
    """
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
    _, method, settings = read(name)
    twin = TWINS[name]
    PIPELINES[twin]().save_pretrained(tmp_path / "teacher")
    call = CALLS[twin]
    size = [f"--load.height={call['height']}", f"--load.width={call['width']}"]
    size += [f"--load.frames={call['num_frames']}"] if "num_frames" in call else []
    size += ["--load.dtype=bfloat16"]
    *_, (_, last, learned) = runs_of(method, settings)
    teacher, cache = tmp_path / "teacher", ["--output", tmp_path / "cache", "--batch_size=2"]
    assert run("precompute", teacher, *size, *cache, *samples(last, learned, tmp_path)) == 0
    given = ["--config", FOLDER / f"{name}.yaml", "--data", tmp_path / "cache", *size]
    small = [
        "--teacher",
        teacher,
        "--output",
        tmp_path / "run",
        "--shards=2",
        "--accumulate=1",
        "--batch_size=2",
    ]
    assert run("train", method, *given, *small, "--dry_run") == 0
    for place, trained, own in runs_of(method, settings):
        folder = tmp_path / "run" / place / "dry_run"
        updates = {"generator/loss", "critic/loss"} if trained != "regression" else set()
        lines = read_metrics(folder / "metrics.jsonl")
        (line,) = (line for line in lines if "generator/loss" in line)
        assert updates <= line.keys()
        steps = own.get("steps", 1)
        times = own.get("times") or [1 - i / steps for i in range(steps)]
        exported = ["student", "lora"] if own.get("export") == "both" else ["student"]
        for kind in exported:
            card = json.loads((folder / kind / "stepdistill.json").read_text())
            assert card["method"] == trained
            assert card["plan"]["times"] == pytest.approx(times)


def runs_of(method: str, settings: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(folder, method, settings) of each run of a recipe: one, or its stages."""
    if method != "stages":
        return [("", method, settings)]
    runs = []
    for number, stage in enumerate(settings["stages"], 1):
        own = {**settings["method"], **stage.get("method", {})}
        runs.append((f"{number}-{stage['train']}", stage["train"], {**settings, "method": own}))
    return runs


def samples(method: str, settings: dict[str, Any], place: Path) -> list[object]:
    """Options of ``precompute`` for what a recipe learns from: pairs, images or prompts."""
    prompts = place / "prompts.txt"
    prompts.write_text("a red fox\nthe sea at night\nan old bike\n")
    if method == "regression":
        return ["--prompts", prompts, "--pairs=4", "--sampler_steps=2", "--guidance_scale=2"]
    if settings["method"].get("gan_weight", 0) == 0:
        return ["--prompts", prompts]
    images = place / "images"
    images.mkdir()
    for i, caption in enumerate(("a red fox", "the sea", "an old bike", "a house")):
        Image.linear_gradient("L").rotate(90 * i).convert("RGB").save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(caption)
    return ["--data", images]
