"""Teachers in one checkpoint file: the same as the folder they were written from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here, draw_no_report, run
from original_names import CLIP, save_original
from safetensors.torch import load_file, save_file
from tiny_pipelines import PIPELINES, image
from torch import Tensor, nn

from stepdistill.conditioning import Conditioning
from stepdistill.errors import UserError
from stepdistill.single_file import guessed, header
from stepdistill.students import load_student
from stepdistill.teachers import LoadOptions, Stored, Teacher, load_encoders, load_teacher

SIZES = {"height": 16, "width": 16}


def weightless(folder: Path) -> Path:
    for path in (*folder.rglob("*.safetensors"), *folder.rglob("*.bin")):
        path.unlink()
    return folder


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def twin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """(folder, the same in one file, a folder of its configurations without weights)."""
    place = tmp_path_factory.mktemp(request.param)
    # diffusers tells SDXL's encoders by their width
    pipeline = image.sdxl(second_width=24) if request.param == "sdxl" else image.sd15()
    pipeline.save_pretrained(place / "folder")
    shutil.copytree(place / "folder", place / "config")
    return (
        place / "folder",
        save_original(pipeline, place / "m.safetensors"),
        weightless(place / "config"),
    )


def x0_and_cond(teacher: Teacher) -> tuple[Tensor, Conditioning]:
    cond = teacher.encode(teacher.examples(2))
    x_t = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    return teacher.denoiser(x_t, torch.tensor([0.9, 0.3]), cond).x0_hat, cond


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_very_same_teacher(twin: tuple[Path, Path, Path], dtype: str) -> None:
    """x0, conditionings, pixels, every weight and its dtype: the same bits as from the folder."""
    folder, file, config = twin
    one = load_teacher(file, options=LoadOptions(dtype=dtype, config=str(config), **SIZES))
    other = load_teacher(folder, options=LoadOptions(dtype=dtype, **SIZES))
    (x0, cond), (expected, told) = x0_and_cond(one), x0_and_cond(other)
    assert torch.equal(x0, expected)
    assert all(torch.equal(cond[name], told[name]) for name, _ in told.items())
    assert torch.equal(one.decode(x0), other.decode(x0))
    for name, part in other.pipeline.components.items():
        if isinstance(part, nn.Module):
            here, there = getattr(one.pipeline, name).state_dict(), part.state_dict()
            assert here.keys() == there.keys()
            assert all(
                torch.equal(here[k], v) and here[k].dtype == v.dtype for k, v in there.items()
            )
    assert one.name == str(file)
    assert one.source == str(file)


def test_shapes_from_the_configurations(twin: tuple[Path, Path, Path]) -> None:
    """On meta no weights are read: the parameters are those of the loaded teacher."""
    _, file, config = twin
    options = LoadOptions(config=str(config), **SIZES)
    shapes, loaded = (load_teacher(file, device, options) for device in ("meta", "cpu"))
    named = {k: v.shape for k, v in loaded.denoiser.state_dict().items()}
    assert {k: v.shape for k, v in shapes.denoiser.state_dict().items()} == named
    assert all(p.is_meta for p in shapes.denoiser.parameters())


@pytest.mark.slow
def test_without_encoders_and_encoders_alone(twin: tuple[Path, Path, Path]) -> None:
    """What is not asked for is not read; the whole is completed from the same file."""
    folder, file, config = twin
    options = LoadOptions(config=str(config), **SIZES)
    whole = load_teacher(folder, options=LoadOptions(**SIZES))
    cond = whole.encode(["a fox"])
    teacher = load_teacher(file, options=options, stored=Stored(whole.null_cond, cond))
    assert teacher.pipeline.text_encoder is None
    assert all(p.is_meta for p in teacher.pipeline.vae.parameters())
    completed = teacher.whole()
    assert torch.equal(x0_and_cond(completed)[0], x0_and_cond(whole)[0])
    encoders = load_encoders(file, options)
    assert all(p.is_meta for p in encoders.denoiser.parameters())
    assert torch.equal(encoders.encode(["a fox"])["prompt_embeds"], cond["prompt_embeds"])


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "folder"
    PIPELINES["flux"]().save_pretrained(folder)
    return folder


def test_a_file_with_the_network_alone(flux: Path, tmp_path: Path) -> None:
    """The encoders and the autoencoder are the configuration folder's; without them it says so."""
    weights = load_file(flux / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {name: 1.1 * value for name, value in weights.items()}
    save_file(changed, tmp_path / "tuned.safetensors")
    options = LoadOptions(config=str(flux), **SIZES)
    teacher, base = (
        load_teacher(tmp_path / "tuned.safetensors", options=options),
        load_teacher(flux, options=LoadOptions(**SIZES)),
    )
    x0, cond = x0_and_cond(teacher)
    assert torch.equal(cond["prompt_embeds"], base.encode(base.examples(2))["prompt_embeds"])
    base.denoiser.backbone.network.load_state_dict(changed)
    assert torch.equal(x0, x0_and_cond(base)[0])
    shutil.copytree(flux, tmp_path / "config")
    options = LoadOptions(config=str(weightless(tmp_path / "config")), **SIZES)
    with pytest.raises(
        UserError, match=r"holds no .*vae.*has no weights of them: give --load\.config"
    ):
        load_teacher(tmp_path / "tuned.safetensors", options=options)


def test_the_kind_is_told_by_names_and_shapes(tmp_path: Path) -> None:
    """As diffusers does, of the header alone; a stranger's names are refused with what is known."""
    kinds = {
        "stable-diffusion-v1-5": {
            "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (1,)
        },
        "stable-diffusion-xl-base-1.0": {
            "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1,)
        },
        "FLUX.1-schnell": {"double_blocks.0.img_attn.norm.key_norm.scale": (1,)},
    }
    file = tmp_path / "m.safetensors"
    for name, shapes in kinds.items():
        save_file({k: torch.zeros(shape) for k, shape in shapes.items()}, file)
        assert guessed(file, header(file)).endswith("/" + name)
        assert all(tensor.is_meta for tensor in header(file).values())
    save_file({"layer.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"it holds layer\.weight.*--load\.config.*FluxPipeline"):
        load_teacher(file)


def changed(
    twin: tuple[Path, Path, Path], tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> Path:
    tensors = load_file(twin[1])
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize("twin", ["sd15"], indirect=True)
def test_mistakes(
    twin: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a sentence that says what to give."""
    folder, file, config = twin
    options = LoadOptions(config=str(config), **SIZES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    real = changed(
        twin,
        tmp_path,
        lambda t: t.update(
            {"model.diffusion_model.output_blocks.11.0.skip_connection.weight": torch.zeros(1)}
        ),
    )
    with pytest.raises(
        UserError, match=r"like stable-diffusion-v1-5/.*could not be had: give --load\.config"
    ):
        load_teacher(real)
    with pytest.raises(
        UserError, match=r"folder with its own configurations: leave load\.config out"
    ):
        load_teacher(folder, options=options)
    cut = changed(twin, tmp_path, lambda t: t.pop("model.diffusion_model.out.2.bias"))
    with pytest.raises(UserError, match=r"the unet in .*some of its tensors are missing"):
        load_teacher(cut, options=options)
    cut = changed(twin, tmp_path, lambda t: t.pop(f"{CLIP}text_model.final_layer_norm.bias"))
    with pytest.raises(
        UserError, match=r"text_encoder in .*1 tensors are missing, as .*norm\.bias"
    ):
        load_teacher(cut, options=options)
    other = tmp_path / "other"
    image.sdxl().save_pretrained(other)
    with pytest.raises(
        UserError, match=r"the \w+ in .* is not as .* describes it .*--load\.config"
    ):
        load_teacher(file, options=LoadOptions(config=str(other), **SIZES))
    PIPELINES["dit"]().save_pretrained(tmp_path / "dit")
    with pytest.raises(UserError, match="no single file to a DiTTransformer2DModel"):
        load_teacher(file, options=LoadOptions(config=str(tmp_path / "dit")))
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="looks damaged"):
        load_teacher(tmp_path / "torn.safetensors", options=options)
    (tmp_path / "m.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"not a \.safetensors file"):
        load_teacher(tmp_path / "m.ckpt", options=options)


@pytest.mark.slow
def test_a_run_from_a_file(
    twin: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """inspect, precompute, train with both exports (each checked by its own code), sample
    --compare."""
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
    folder, file, config = twin
    (tmp_path / "prompts.txt").write_text("a red fox\na blue car\n")
    size = ("--load.height=16", "--load.width=16")
    own = ("--load.config", config, *size)
    figures = ("--method=dmd2", "--method.gan_weight=0", "--device=cpu", "--json")
    shown = []
    for given in ((file, *own), (folder, *size)):
        assert run("inspect", *given, *figures) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1]
    prompts = ("--prompts", tmp_path / "prompts.txt")
    assert run("precompute", file, *own, *prompts, "--output", tmp_path / "encoded") == 0
    flags = [
        *("--teacher", file, *own, "--data", tmp_path / "encoded", "--lora.rank=2"),
        *("--method.gan_weight=0", "--method.critic_steps=1", "--export=both", "--max_steps=1"),
        *("--batch_size=8", "--output", tmp_path / "run"),
    ]
    assert run("train", "dmd2", *flags) == 0
    card = (tmp_path / "run" / "lora" / "README.md").read_text()
    assert "from_single_file" in card
    assert str(file) in card
    student = tmp_path / "run" / "student"
    assert load_student(student).plan is not None
    compare = ("--compare", file, "--compare_config", config, "--compare_steps=2", "--num=1")
    assert (
        run("sample", student, "--prompt", "a fox", *compare, "--output", tmp_path / "g.png") == 0
    )
