"""``stepdistill inspect``: folders without weights, the options of ``train``, and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import run
from tiny import tiny_teacher, tiny_teacher_folder
from tiny_pipelines import CALLS, PIPELINES, some_slow

from stepdistill.backbones.family import Family
from stepdistill.distil import build_method, build_without_data, read_settings
from stepdistill.errors import UserError
from stepdistill.fit import FitConfig
from stepdistill.footprint import parts_of
from stepdistill.methods import METHODS
from stepdistill.rehearsal import without_data
from stepdistill.teachers import LoadOptions, load_teacher

# whose encoders must see what they encode: sequences of an unknown length, an image
NEEDS_DATA = ("qwen-image",)
FAMILIES = [name for name in PIPELINES if name not in ("ddpm", "ltx", *NEEDS_DATA)]


def weightless(folder: Path) -> Path:
    """``folder`` without its weights."""
    for path in (*folder.rglob("*.safetensors"), *folder.rglob("*.bin")):
        path.unlink()
    return folder


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What ``stepdistill inspect ... --json`` prints."""
    capsys.readouterr()
    assert run("inspect", *arguments, "--json", "--device", "cpu") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion without weights."""
    folder = tmp_path_factory.mktemp("sd") / "tiny"
    PIPELINES["sd15"]().save_pretrained(folder)
    return weightless(folder)


@pytest.mark.parametrize("name", some_slow(FAMILIES))
def test_shapes_without_weights(name: str, tmp_path: Path) -> None:
    """A folder of config files gives the teacher's very parameters, dtypes, sample and condition
    shapes, on the meta device."""
    PIPELINES[name]().save_pretrained(tmp_path / name)
    size = CALLS[name]
    options = LoadOptions(
        dtype="bfloat16",
        height=size.get("height"),
        width=size.get("width"),
        frames=size.get("num_frames"),
        max_tokens=64 if name == "z-image" else None,
    )
    real = load_teacher(tmp_path / name, options=options)
    weightless(tmp_path / name)
    with without_data():
        bare = load_teacher(tmp_path / name, "meta", options)

    def kinds(module: torch.nn.Module) -> dict[str, Any]:
        return {k: (tuple(v.shape), v.dtype) for k, v in module.state_dict().items()}

    assert kinds(bare.denoiser) == kinds(real.denoiser)
    assert all(v.is_meta for v in bare.denoiser.state_dict().values())
    assert bare.sample_shape == real.sample_shape
    assert {k: v.shape for k, v in (bare.null_cond or {}).items()} == {
        k: v.shape for k, v in (real.null_cond or {}).items()
    }
    assert bare.encoders().keys() == real.encoders().keys()
    for part, encoder in real.encoders().items():
        assert kinds(bare.encoders()[part]).keys() == kinds(encoder).keys()


@pytest.mark.slow
def test_the_figures_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weightless pixel teacher: the parts that the loop would count on the real one."""
    teacher = tiny_teacher(tmp_path)
    flags = ["--method.gan_weight=0.1", "--batch_size=32", "--accumulate=2"]
    settings = read_settings("dmd2", ["--teacher=x", "--output=y", *flags])
    method = build_method("dmd2", settings, teacher)
    real = parts_of(method, teacher.denoiser, settings.get(FitConfig))
    found = inspect(capsys, weightless(tmp_path), "--method", "dmd2", *flags)
    assert [(p["name"], p["weights"], p["moments"]) for p in found["parts"]] == [
        (p.name, p.weights, p.moments) for p in real
    ]
    moving = {k: v["moving"] for k, v in found["updates"].items()}
    assert set(moving) == {"critic", "generator"}
    assert found["peak"] == found["resident"] + max(moving.values())
    more = inspect(capsys, tmp_path, "--batch_size=64", "--accumulate=2", flags[0])
    assert more["updates"]["generator"]["moving"] > 1.6 * moving["generator"]
    assert more["resident"] == found["resident"]


@pytest.mark.slow
def test_the_config_of_a_run_may_be_given(
    sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same YAML as ``train``'s, and options beside it; encoders stay on the CPU or move."""
    config = {
        **{"teacher": str(sd), "output": "runs/x", "batch_size": 4, "prompts": "prompts.txt"},
        "method": {"gan_weight": 0.0},
        "lora": {"rank": 4},
        "load": {"dtype": "bfloat16"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    flags = ("--method", "dmd2", "--config", tmp_path / "run.yaml", "--shards=4")
    found = inspect(capsys, *flags)
    named = {part["name"]: part for part in found["parts"]}
    assert named["vae"]["place"] == named["text_encoder"]["place"] == "cpu"
    assert named["critic"]["weights"] < named["teacher"]["weights"]
    moved = inspect(capsys, *flags, "--load.encoders=device")
    encoders = named["vae"]["weights"] + named["text_encoder"]["weights"]
    assert moved["resident"] == found["resident"] + encoders
    full = inspect(capsys, *flags, "--lora.rank=0")
    assert full["resident"] > found["resident"]


@pytest.mark.slow
def test_the_table_says_whether_it_fits(sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part with its place, the two peaks, and what this machine has."""
    assert run("inspect", sd, "--batch_size=8", "--method.gan_weight=0", "--device=cpu") == 0
    shown = capsys.readouterr().out
    for said in ("teacher", "generator", "average (EMA)", "vae", "cpu", "critic update:"):
        assert said in shown
    assert "at the peak" in shown
    assert "GiB: it fits" in shown


def test_encoders_move_where_they_are_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the network alone goes to the device; "device" takes the encoders along."""
    PIPELINES["sd15"]().save_pretrained(tmp_path)
    moved: list[str] = []

    def to(self: torch.nn.Module, device: object, *rest: object) -> torch.nn.Module:
        moved.append(type(self).__name__)
        return self

    for place, expected in (("cpu", []), ("device", ["AutoencoderKL", "CLIPTextModel"])):
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "to", to)
            patch.setattr("diffusers.ModelMixin.to", to)
            patch.setattr("transformers.PreTrainedModel.to", to)
            moved.clear()
            load_teacher(tmp_path, "cuda", LoadOptions(encoders=place))  # type: ignore[arg-type]
        assert sorted(set(moved) - {"Denoiser"}) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--method", "dmd3"], "there is no method dmd3: the methods are dmd2"),
        (["--device=tpu"], "device must be cuda or cpu, got tpu"),
        (["--processes=0"], "processes must be at least 1, got 0"),
        (["--lora.rnk=3"], "Did you mean --lora.rank?"),
    ],
)
def test_mistakes_end_with_a_sentence(
    given: list[str], says: str, sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", sd, *given) == 2
    assert says in capsys.readouterr().err


def test_encoders_that_need_data(tmp_path: Path) -> None:
    """A sentence, not a wrong figure."""
    PIPELINES["qwen-image"]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its config files are not enough"), without_data():
        load_teacher(weightless(tmp_path), "meta", LoadOptions(height=32, width=32))


@pytest.mark.slow
def test_a_first_frame_without_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two experts told by an image: both updates are rehearsed."""
    PIPELINES["wan22-i2v"]().save_pretrained(tmp_path)
    size = ("--load.height=32", "--load.width=32", "--load.frames=9", "--lora.rank=2")
    found = inspect(capsys, weightless(tmp_path), *size, "--method.gan_weight=0", "--batch_size=8")
    assert set(found["updates"]) == {"critic", "generator"}
    assert "problem" not in found


def test_a_hub_model_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files that hold none are fetched."""
    folder, asked = tiny_teacher_folder(tmp_path / "tiny"), {}

    def snapshot_download(source: str, **patterns: Any) -> str:
        asked.update(patterns, source=source)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with without_data():
        teacher = load_teacher("someone/something", "meta")
    assert isinstance(teacher.family, Family)
    assert asked["source"] == "someone/something"
    assert not any("safetensors" in p or "bin" in p for p in asked["allow_patterns"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_without_weights(name: str, tmp_path: Path) -> None:
    """On the meta device, whatever its constructor computes."""
    given = ["--teacher", str(tiny_teacher_folder(tmp_path / "tiny")), "--output=x"]
    given += ["--method.forget", "1"] if name == "sfd" else []
    _, method = build_without_data(name, read_settings(name, given))
    for role in method.roles.values():
        assert all(parameter.is_meta for parameter in role.module.parameters())
