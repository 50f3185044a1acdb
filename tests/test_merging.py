"""``stepdistill merge``: two students between which the third lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import check_exports_here, run
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny import tiny_teacher_folder
from tiny_pipelines import PIPELINES
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.export import export, export_lora
from stepdistill.merging import between, merge
from stepdistill.plans import StepPlan
from stepdistill.roles import LoRAOptions, full, merged, trainable_role
from stepdistill.sampling import NoiseStreams, sample_student
from stepdistill.teachers import CARD, LoadOptions, Teacher, load_teacher, read_card

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exports_here(monkeypatch)


def student(teacher: Teacher, seed: int, plan: StepPlan, folder: Path) -> Path:
    """A student whose weights lie at random around the teacher's."""
    role = full("generator", teacher.student())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.trainable().values():
            scale = 0.02 * float(parameter.abs().mean()) + 1e-3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    export(role.frozen, teacher, plan, folder, {"method": f"m{seed}", "iteration": seed})
    return folder


@pytest.fixture(scope="module", params=["digits", "sd15"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two-step students a and b of one teacher; of the digits' size, and of a tiny SD whose size is
    not its default."""
    place = tmp_path_factory.mktemp("merge")
    options = LoadOptions()
    if request.param == "digits":
        tiny_teacher_folder(place / "teacher")
    else:
        PIPELINES["sd15"]().save_pretrained(place / "teacher")
        options = LoadOptions(height=32, width=16)
    teacher = load_teacher(place / "teacher", options=options)
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        for seed, name in enumerate("ab"):
            student(teacher, seed, StepPlan.uniform(2), place / name)
    return place


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / UNET)


def test_a_half_of_each(place: Path, tmp_path: Path) -> None:
    """Weight by weight by hand; the folder is a stock pipeline's, its card names both, and all but
    the weights is as in the first."""
    assert run("merge", place / "a", place / "b", "--output", tmp_path / "half") == 0
    a, b, half = (weights(folder) for folder in (place / "a", place / "b", tmp_path / "half"))
    assert half.keys() == a.keys()
    for name, value in half.items():
        assert torch.equal(value, 0.5 * a[name] + 0.5 * b[name]), name
    assert any(not torch.equal(half[name], a[name]) for name in a)
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "half")).__name__ in (
        "ConsistencyModelPipeline",
        "StableDiffusionPipeline",
    )
    card, first = read_card(tmp_path / "half"), read_card(place / "a")
    for key in ("family", "plan", "sample_shape", "num_classes", "counts", "call", "teacher"):
        assert card[key] == first[key], key
    assert card["method"] == "merge"
    assert card["weight"] == 0.5
    told = [{"name": n, "method": f"m{i}", "iteration": i} for i, n in enumerate("ab")]
    assert card["merged"] == told
    page = (tmp_path / "half" / "README.md").read_text()
    assert "A 2-step student of `teacher`" in page
    assert '"name": "b"' in page
    theirs = {p.relative_to(place / "a") for p in (place / "a").rglob("*") if p.is_file()}
    ours = {p.relative_to(tmp_path / "half") for p in (tmp_path / "half").rglob("*") if p.is_file()}
    assert ours == theirs


@pytest.mark.parametrize(("weight", "name"), [(0, "a"), (1, "b")])
def test_the_ends_are_the_students(place: Path, tmp_path: Path, weight: int, name: str) -> None:
    """Bit for bit."""
    merge(place / "a", place / "b", weight, tmp_path / "end")
    own, expected = weights(tmp_path / "end"), weights(place / name)
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)


def test_in_half_precision_the_sum_is_taken_in_float32(place: Path, tmp_path: Path) -> None:
    """And rounded to the dtype that is asked for; the file of pixels' networks is float32."""
    more = ("--dtype", "float16", "--weight", 0.3)
    assert run("merge", place / "a", place / "b", "--output", tmp_path / "half", *more) == 0
    a, b, found = (weights(folder) for folder in (place / "a", place / "b", tmp_path / "half"))
    for name, value in found.items():
        expected = 0.7 * a[name].half().float() + 0.3 * b[name].half().float()
        torch.testing.assert_close(value.float(), expected.half().float(), rtol=0, atol=0)


def test_whole_numbers_are_the_firsts() -> None:
    assert between(torch.tensor([3]), torch.tensor([5]), 0.5).tolist() == [3]


def test_what_cannot_be_merged(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence each, and nothing is written."""

    def refused(*arguments: object, output: Path = tmp_path / "merged") -> str:
        assert run("merge", *arguments, "--output", output) == 2
        assert not (tmp_path / "merged").exists()
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    a, b = place / "a", place / "b"
    for weight in (-0.1, 1.1):
        assert "weight must lie in [0, 1]" in refused(a, b, "--weight", weight)
    assert "is no student and holds none" in refused(a, tmp_path / "nothing")
    assert "is no student that stepdistill exported" in refused(a, place / "teacher")
    assert "is one of the two students: give another --output" in refused(a, b, output=b)
    assert run("merge", a, b) == 2
    assert "merge needs --output" in capsys.readouterr().err

    def changed(**fields: object) -> Path:
        other = tmp_path / "changed"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(b, other)
        (other / CARD).write_text(json.dumps({**read_card(b), **fields}))
        return other

    three = StepPlan.uniform(3).to_dict()
    assert "plan.times: " in refused(a, changed(plan=three))
    assert "family: 'dit' there" in refused(a, changed(family="dit"))
    assert "holds no readable step plan" in refused(a, changed(plan={"steps": 2}))
    scheduler = changed() / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.5}))
    assert "scheduler.beta_end: 0.5 there" in refused(a, tmp_path / "changed")


def test_students_of_other_networks(tmp_path: Path) -> None:
    for name, width in (("a", 8), ("b", 16)):
        folder = tiny_teacher_folder(tmp_path / f"of_{name}", block_out_channels=(width, width))
        student(load_teacher(folder), 0, StepPlan(), tmp_path / name)
    with pytest.raises(UserError, match=r"of another network than .*give two students of one"):
        merge(tmp_path / "a", tmp_path / "b", 0.5, tmp_path / "merged")


@pytest.mark.slow
def test_a_full_student_and_a_lora_one(tmp_path: Path) -> None:
    """SwiftBrush v2's pair: the LoRA is merged into its student's folder first; its file alone is
    refused with a sentence. The result samples as its weights say."""
    PIPELINES["sd15"]().save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", options=LoadOptions(height=16, width=16))
    plan = StepPlan()
    student(teacher, 0, plan, tmp_path / "full")
    role = trainable_role("generator", teacher.student(), LoRAOptions(rank=2), teacher.lora_targets)
    with torch.no_grad():
        for i, parameter in enumerate(role.trainable().values()):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
    export_lora(role.frozen, teacher, plan, tmp_path / "lora")
    with pytest.raises(UserError, match=r"holds a LoRA, .*train with --export both"):
        merge(tmp_path / "full", tmp_path / "lora", 0.5, tmp_path / "merged")
    export(merged(role).eval(), teacher, plan, tmp_path / "runs" / "x" / "student")
    merge(tmp_path / "full", tmp_path / "runs" / "x", 0.25, tmp_path / "merged")
    assert read_card(tmp_path / "merged")["merged"][1]["name"] == "x/student"
    own = load_teacher(tmp_path / "merged", options=LoadOptions(height=16, width=16))
    mixed = full("generator", teacher.student()).frozen
    parts = [weights(tmp_path / name) for name in ("full", "runs/x/student")]
    state = mixed.backbone.network.state_dict()  # type: ignore[union-attr]
    for name, value in state.items():
        value.copy_(0.75 * parts[0][name] + 0.25 * parts[1][name])
    cond = teacher.encode(["a cat", "a dog"])
    shape = teacher.sample_shape
    samples = [
        sample_student(network, plan, cond, shape, NoiseStreams(range(2)))  # type: ignore[arg-type]
        for network in (own.student(), mixed)
    ]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
