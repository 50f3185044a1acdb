"""``stepdistill train`` on a teacher that is told by text: what is written, hooks, a dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import check_exports_here, draw_no_report, needs_compiler, run
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import PIPELINES

from stepdistill.runs import read_metrics

SEEN: list[tuple[int, int]] = []


def see(iteration: int, method: object, ema: object) -> None:
    """A hook of someone's own."""
    SEEN.append((iteration, len(ema.weights)))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion and a file of prompts."""
    place = tmp_path_factory.mktemp("text")
    PIPELINES["sd15"]().save_pretrained(place / "teacher")
    (place / "prompts.txt").write_text("a red cat\na blue dog\n\nthree apples\n")
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)


def train(place: Path, output: Path, *more: object) -> int:
    size = ["--load.height", 16, "--load.width", 16, "--method.gan_weight", 0]
    told = ["--teacher", place / "teacher", "--prompts", place / "prompts.txt"]
    short = ["--max_steps", 2, "--batch_size", 4, "--method.critic_steps", 2]
    return run("train", "dmd2", *told, *size, *short, "--output", output, *more)


@pytest.mark.slow
def test_both_exports_students_on_the_way_grids_and_hooks(place: Path, tmp_path: Path) -> None:
    """A LoRA run writes the merged folder, the LoRA and a student each iteration; grids show the
    validation prompts; the hook sees each iteration."""
    SEEN.clear()
    own = ["--hooks", f"{__name__}:see", "--validation_prompts", "a cat", "a dog", "a fox"]
    lora = ["--lora.rank", 2, "--export", "both", "--export_every", 1, "--sample_every", 2]
    assert train(place, tmp_path / "run", *lora, *own) == 0
    assert [iteration for iteration, _ in SEEN] == [1, 2]
    assert all(weights > 0 for _, weights in SEEN)
    folders = ["student", "lora", "students/000001", "students/000002"]
    for folder in folders:
        card = json.loads((tmp_path / "run" / folder / "stepdistill.json").read_text())
        assert card["iteration"] == (1 if folder == "students/000001" else 2)
    assert (tmp_path / "run/lora/pytorch_lora_weights.safetensors").exists()
    assert not list((tmp_path / "run/student").glob("*lora*"))
    grid = Image.open(tmp_path / "run/samples/000002.png")
    assert grid.size == (3 * 50 - 2, 4 * 50 - 2)


@pytest.mark.slow
def test_a_dry_run_is_one_iteration_of_one_micro_batch(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a folder of its own, that a second one replaces; the run's own folder stays free. The
    memory of each update is told first."""
    output = tmp_path / "run"
    for _ in range(2):
        assert train(place, output, "--accumulate", 2, "--dry_run") == 0
    assert [path.name for path in output.iterdir()] == ["dry_run"]
    assert re.search(r"generator update: [\d.]+ MiB at the peak", capfd.readouterr().out)
    lines = read_metrics(output / "dry_run" / "metrics.jsonl")
    assert [line["iteration"] for line in lines if "generator/loss" in line] == [1]
    settings = yaml.safe_load((output / "dry_run" / "config.yaml").read_text())
    assert (settings["max_steps"], settings["batch_size"]) == (1, 2)
    assert (output / "dry_run/student/model_index.json").exists()
    assert train(place, output) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hooks", "no_such_module:f"], "hooks names no_such_module:f, write module:function"),
        (["--hooks", "json:nothing"], "hooks names json:nothing"),
        (["--hooks", ".json:dumps"], "hooks names .json:dumps, write module:function"),
        (["--hooks", "json:dumps"], "write a function of (iteration, method, ema)"),
        (["--hooks", "math:pi"], "hooks names math:pi, which is no function"),
        (["--seed", "99999999999999999999"], "seed must lie in 0 to"),
        (["--data", "digits"], "told by text: give images with captions"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--load.height", "17"], "height must be a multiple of"),
        (["--load.dtype", "int8"], "dtype must be one of float32, bfloat16, float16"),
        (["--export", "lora"], "export=lora needs LoRA roles: give --lora.rank"),
    ],
)
def test_mistakes(
    place: Path,
    tmp_path: Path,
    options: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sentence and exit code 2, before anything is trained."""
    prompts = [] if "--data" not in options else ["--prompts", ""]
    assert train(place, tmp_path / "run", *prompts, *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_students_told_by_text_are_measured(place: Path, tmp_path: Path) -> None:
    """Told by the prompts of the training, by precomputed ones (with a teacher that has no
    encoders) or by a file of the same: the teacher gives the same, to the last bit."""
    size = ["--load.height", 32, "--load.width", 32]
    given = [place / "teacher", "--prompts", place / "prompts.txt"]
    assert run("precompute", *given, *size, "--output", tmp_path / "cache") == 0
    own = ["--evaluate_every", 1, "--evaluate_samples", 12, "--eval.features", "scenes", *size]
    cached = ["--prompts", "", "--data", tmp_path / "cache"]
    file = ["--eval.prompts", place / "prompts.txt"]
    kinds = {"prompts": [], "cached": cached, "file": [*cached, *file]}
    found = {}
    for name, more in kinds.items():
        assert train(place, tmp_path / name, *own, *more) == 0
        found[name] = load_file(tmp_path / name / "measured_teacher.safetensors")
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        rows = [line for line in lines if "eval/teacher_distance" in line]
        assert [row["iteration"] for row in rows] == [1, 2]
        assert all(row["eval/diversity"] > 0 for row in rows)
    assert found["prompts"]["features/scenes"].shape == (12, 64)
    for other in ("cached", "file"):
        assert all(torch.equal(found[other][k], v) for k, v in found["prompts"].items())


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_is_the_same_run(place: Path, tmp_path: Path) -> None:
    """Trained and exported with compiled blocks: nearly the eager run's student, same names.

    Not to the bit, since it was compiled. Nearly, since Adam's first steps have all one length, and
    rounding turns some that are near 0.
    """
    for name, option in (("eager", "false"), ("compiled", "true")):
        assert train(place, tmp_path / name, "--compile_blocks", option) == 0
    file = "student/unet/diffusion_pytorch_model.safetensors"
    eager, compiled = (load_file(tmp_path / name / file) for name in ("eager", "compiled"))
    start = load_file(place / "teacher/unet/diffusion_pytorch_model.safetensors")
    assert list(eager) == list(compiled)
    moved = torch.cat([(eager[k] - start[k]).flatten() for k in start])
    apart = torch.cat([(eager[k] - compiled[k]).flatten() for k in start])
    assert 0 < apart.norm() < 0.1 * moved.norm()
