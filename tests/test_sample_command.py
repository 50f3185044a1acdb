"""``stepdistill sample`` of models that are told by text: rows, comparison, what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import check_exports_here, run
from PIL import Image
from tiny_pipelines import PIPELINES, image

from stepdistill.errors import UserError
from stepdistill.export import export
from stepdistill.parser import gathered
from stepdistill.plans import StepPlan
from stepdistill.students import load_student
from stepdistill.teachers import LoadOptions, load_teacher


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Flux and its student of four steps: it draws later noise from torch's generator."""
    place = tmp_path_factory.mktemp("flux")
    PIPELINES["flux"]().save_pretrained(place / "teacher")
    teacher = load_teacher(place / "teacher", options=LoadOptions(height=16, width=16))
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        export(teacher.student(), teacher, StepPlan.uniform(4), place / "student")
    return place / "teacher", place / "student"


def test_a_sample_depends_on_its_seed_alone(folders: tuple[Path, Path]) -> None:
    """The same image for the same seed and prompt, whatever stands beside it; and torch's own
    generator is left as it was."""
    student = load_student(folders[1])
    before = torch.get_rng_state()
    three = student.sample(["a cat", "a dog", "a cat"], [5, 6, 7], 4)
    alone = student.sample(["a dog"], [6], 4)
    assert torch.equal(three[1:2], alone)
    assert not torch.equal(three[0], three[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_who_is_called_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Diffusion 3 draws later noise from torch's own generator: a call a sample where there
    is a later step, unless samples may depend on their batch. One step has none, and is batched.
    """
    PIPELINES["sd3"]().save_pretrained(tmp_path / "sd3")
    student = load_student(tmp_path / "sd3")
    size, sizes = {"height": 16, "width": 16, "guidance_scale": 1.0}, list[int]()
    whole = type(student.pipeline).__call__

    def counted(pipeline: object, *args: object, **given: object) -> object:
        sizes.append(len(given["generator"]))  # type: ignore[arg-type]
        return whole(pipeline, *args, **given)

    monkeypatch.setattr(type(student.pipeline), "__call__", counted)
    one = student.sample(["a cat", "a dog"], [5, 6], 1, **size)
    assert torch.allclose(student.sample(["a dog"], [6], 1, **size), one[1:], atol=1e-5)
    student.sample(["a cat", "a dog"], [5, 6], 2, **size)
    student.sample(["a cat", "a dog"], [5, 6], 2, alone=False, **size)
    assert sizes == [2, 1, 1, 1, 2]


def test_asked_for_truncation_is_no_news(tmp_path: Path) -> None:
    """The pipeline's warning of every cut prompt is left out with max_tokens, and only then."""
    PIPELINES["sd3"]().save_pretrained(tmp_path / "sd3")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: said.append(entry.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers.pipelines.stable_diffusion_3")
    logger.addHandler(handler)
    try:
        teacher = load_teacher(tmp_path / "sd3", options=LoadOptions(max_tokens=1))
        teacher.encode(["a red fox by the sea"])
        assert said == []
        teacher.pipeline.encode_prompt(
            "a red fox by the sea", None, None, device="cpu", max_sequence_length=1
        )
        assert any("truncated" in text for text in said)
    finally:
        logger.removeHandler(handler)


@pytest.mark.slow
def test_a_comparison_is_one_labelled_grid(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of the teacher and one for each number of steps, each below its latency."""
    teacher, student = folders
    asked = ["--prompt", "a red fox", "a blue car", "--steps", "1", "4", "--num", "3"]
    compared = ["--compare", teacher, "--compare_steps", "2"]
    assert run("sample", student, *asked, *compared, "--output", tmp_path / "grid.png") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0:2] for line in said[:3]] == [
        ["teacher", " 2 steps"],
        ["student", " 1 step"],
        ["student", " 4 steps"],
    ]
    assert all(line.endswith(" ms an image") for line in said[:3])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape[0] == 3 * (48 + 18 + 2) - 2
    assert grid.shape[1] >= 3 * 50 - 2
    rows = [grid[top : top + 18] for top in (0, 68, 136)]
    assert all((row == 255).mean() > 0.5 and (row < 64).any() for row in rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "told by text: give --prompt"),
        (["--prompt", "a", "--labels", "1"], "told by text: give --prompt, and no labels"),
        (["--prompt", "a", "--guidance_scale", "5"], "trained at guidance_scale=3.5 alone"),
        (["--prompt", "a", "--steps", "3"], "4 trained steps: use one of [1, 2, 4]"),
        (["--prompt", "a", "--steps", "1", "2", "--output", "folder"], "need a .png"),
        (["--prompt", "a", "--image", "x.png"], "goes on from no first frame: leave image out"),
        (["--prompt", "a", "--seed", "99999999999999999999"], "seed must lie in 0 to"),
    ],
)
def test_what_cannot_be_sampled(
    folders: tuple[Path, Path],
    options: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sentence, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    assert run("sample", folders[1], *options) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "says"),
    [("none.png", "there is no file none.png"), ("p.txt", "p.txt is not a readable image")],
)
def test_a_first_frame_that_cannot_be_read(
    image: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sentence, before anything is sampled."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("no picture")
    PIPELINES["wan-i2v"]().save_pretrained("teacher")
    assert run("sample", "teacher", "--prompt", "a", "--image", image) == 2
    assert says in capsys.readouterr().err


def test_an_empty_prompt_is_sampled(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """It is a prompt like another."""
    asked = ["--prompt", "", "--num", "1", "--output", tmp_path / "grid.png"]
    assert run("sample", folders[1], *asked) == 0
    assert (tmp_path / "grid.png").exists()


def test_guidance_that_a_student_is_told(folders: tuple[Path, Path]) -> None:
    """Flux's network takes the scale as a number, which may be named; the schnell one takes none,
    and says so."""
    student = load_student(folders[1])
    assert student.guidance(3.5) == {"guidance_scale": 3.5}
    schnell = image.flux(guidance_embeds=False)
    with pytest.raises(UserError, match="was trained without guidance"):
        replace(student, pipeline=schnell).guidance(3.5)


def test_guidance_on_a_student_when_asked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """--anyway passes it on to the pipeline: the image is another one."""
    asked = ["sample", folders[1], "--prompt", "a", "--num", "1", "--output"]
    assert run(*asked, tmp_path / "plain.png") == 0
    assert run(*asked, tmp_path / "guided.png", "--guidance_scale", "9", "--anyway") == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "guided.png").read_bytes()


def test_several_values_after_an_option() -> None:
    """Numbers end at the next word, texts at the next option; a written list stays."""
    lists = {"steps": int, "prompt": str}
    for given, expected in (
        ("--steps 1 2 4 folder", ["--steps=[1, 2, 4]", "folder"]),
        ("--prompt a b --seed 3", ['--prompt=["a", "b"]', "--seed", "3"]),
        ("--steps [1,2] --seed 3", ["--steps", "[1,2]", "--seed", "3"]),
        ("--prompt  --seed 3", ['--prompt=[""]', "--seed", "3"]),
        ("--steps=3", ["--steps=[3]"]),
        ("--seed 3 folder", ["--seed", "3", "folder"]),
    ):
        assert gathered(given.split(" "), lists) == expected
