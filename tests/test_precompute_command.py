"""``stepdistill precompute`` on tiny whole pipelines, and trainings that read its folders."""

from __future__ import annotations

import gc
import itertools
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from diffusers import DDPMScheduler, LCMScheduler
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import CALLS, PIPELINES
from torch import Tensor

from stepdistill.conditioning import Conditioning
from stepdistill.data.buckets import crop_to
from stepdistill.data.captioned_images import Size
from stepdistill.data.sharded_data import ShardedData, load_shards
from stepdistill.denoisers import Denoiser
from stepdistill.errors import UserError
from stepdistill.fit import FitResult, fit
from stepdistill.initial import start_from
from stepdistill.losses import squared_error
from stepdistill.plans import StepPlan, start
from stepdistill.precomputed import check_teacher, stored
from stepdistill.presets import digits as preset
from stepdistill.roles import full
from stepdistill.teachers import LoadOptions, Teacher, load_encoders, load_teacher

PROMPTS = ["a red fox", "the sea at night, seen from afar", "one", "two old bikes", "a house"]
Folder = Callable[[str], Path]


def slowly(*names: str) -> list[Any]:
    """Parameters whose tests are left out of the fast ones."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a tiny model, by name."""
    place = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (place / name).exists():
            PIPELINES[name]().save_pretrained(place / name)
        return place / name

    return folder


pytestmark = pytest.mark.usefixtures("quick_runs")


def options(name: str) -> list[str]:
    """What keeps the samples of a model tiny."""
    names = {"height": "height", "width": "width", "num_frames": "frames"}
    return [f"--load.{names[k]}={v}" for k, v in CALLS[name].items() if k in names]


def loaded(folder: Path, name: str) -> Teacher:
    sizes = CALLS[name]
    picked = (sizes.get("height"), sizes.get("width"), sizes.get("num_frames"))
    return load_teacher(folder, options=LoadOptions("float32", *picked))


def prompts_file(folder: Path, texts: list[str] = PROMPTS) -> Path:
    file = folder / "prompts.txt"
    file.write_text("\n".join(texts))
    return file


def pictures(folder: Path, count: int = 5) -> Path:
    """Of several sizes, with captions."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        height, width = [(16, 16), (12, 30), (40, 20), (17, 33), (24, 24)][i % 5]
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(PROMPTS[i % 5])
    return folder


def train(folder: Path, output: Path, *more: object, method: str = "dmd2") -> int:
    """Two iterations."""
    given = ["--teacher", folder, "--output", output, "--max_steps=2", "--batch_size=4"]
    return run("train", method, *given, "--shards=2", "--seed=3", *more)


NO_GAN = ("--method.gan_weight=0", "--method.critic_steps=1", "--method.generator_lr=1e-3")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def untold(student: Path) -> dict[str, bytes]:
    """Without the tokenizers, which keep how the last call has padded, and what says whence."""
    left_out = ("tokenizer.json", "README.md", "stepdistill.json")
    return {k: v for k, v in contents(student).items() if not k.endswith(left_out)}


# ---- prompts

GUIDED = {"sd15": 3.0, "sdxl": 3.0, "flux": 2.0, "sd3": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", *slowly("sdxl", "flux", "sd3")])
def test_training_from_precomputed_prompts_is_the_same_run(
    name: str, saved: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DMD2 under guidance, from the folder and from the prompts in memory: the same student to the
    last bit, with all its encoders, though the training had none of them."""
    folder, file = saved(name), prompts_file(tmp_path)
    same = [*options(name), *NO_GAN, f"--method.guidance_scale={GUIDED[name]}"]
    assert train(folder, tmp_path / "memory", "--prompts", file, *same) == 0
    out = tmp_path / "out"
    assert run("precompute", folder, "--prompts", file, "--output", out, *options(name)) == 0
    assert load_shards(out).texts(list(range(5))) == PROMPTS
    held: list[Any] = []
    whole = Teacher.whole

    def watched(teacher: Teacher) -> Teacher:
        held.append(teacher.pipeline.components)
        return whole(teacher)

    monkeypatch.setattr(Teacher, "whole", watched)
    assert train(folder, tmp_path / "stored", "--data", out, *same) == 0
    [parts] = held
    assert parts["text_encoder"] is None
    assert all(parameter.is_meta for parameter in parts["vae"].parameters())
    in_memory, from_folder = (tmp_path / run / "student" for run in ("memory", "stored"))
    networks = [name for name in contents(from_folder) if name.endswith(".safetensors")]
    assert len(networks) > 2  # the encoders and the autoencoder too
    assert untold(from_folder) == untold(in_memory)


def test_the_stored_conditionings_are_the_teachers(saved: Folder, tmp_path: Path) -> None:
    """The null conditioning and the examples, as the whole teacher encodes them."""
    folder = saved("sdxl")
    out = tmp_path / "out"
    file = prompts_file(tmp_path)
    assert run("precompute", folder, "--prompts", file, "--output", out) == 0
    found = stored(load_shards(out), decodes=False)
    whole = load_teacher(folder)
    assert whole.null_cond is not None
    assert found.null_cond is not None
    assert same(found.null_cond, whole.null_cond)
    assert same(found.shown, whole.encode(whole.examples(4)))
    bare = load_teacher(folder, stored=found)
    assert same(bare.shown(3), whole.encode(whole.examples(4)).select(slice(3)))
    assert bare.shown(6).batch_size == 6
    with pytest.raises(UserError, match="loaded without its text encoders"):
        bare.encode(["a prompt"])
    assert bare.sample_shape == whole.sample_shape


def same(one: Conditioning, other: Conditioning) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_first_frames_are_prompts(saved: Folder, tmp_path: Path) -> None:
    """Image to video: captions and first frames, encoded as the teacher does, and a training."""
    folder, out = saved("wan-i2v"), tmp_path / "out"
    images = pictures(tmp_path / "images", 3)
    given = ["--prompts", images, "--output", out, *options("wan-i2v")]
    assert run("precompute", folder, *given) == 0
    teacher = loaded(folder, "wan-i2v")
    frames = [Image.open(images / f"{i}.png").convert("RGB") for i in range(3)]
    _, cond = load_shards(out).fetch([0, 1, 2])
    assert same(cond, teacher.encode(list(zip(PROMPTS, frames, strict=False))))
    bare = load_teacher(folder, stored=stored(load_shards(out), decodes=False))
    assert bare.pipeline.text_encoder is bare.pipeline.image_encoder is None
    assert bare.whole().pipeline.transformer is bare.denoiser.backbone.network
    given = ["--data", out, *options("wan-i2v"), *NO_GAN]
    assert train(folder, tmp_path / "run", *given) == 0
    assert (tmp_path / "run" / "student" / "image_encoder").is_dir()


@pytest.mark.slow
def test_grids_of_a_precomputed_run(saved: Folder, tmp_path: Path) -> None:
    """They need the autoencoder, which is then loaded, and the stored examples."""
    folder, file, out = saved("sd15"), prompts_file(tmp_path), tmp_path / "out"
    assert run("precompute", folder, "--prompts", file, "--output", out) == 0
    given = [*NO_GAN, "--sample_every=2"]
    assert train(folder, tmp_path / "stored", "--data", out, *given) == 0
    assert train(folder, tmp_path / "memory", "--prompts", file, *given) == 0
    stored_grid, grid = (tmp_path / r / "samples/000002.png" for r in ("stored", "memory"))
    assert stored_grid.read_bytes() == grid.read_bytes()


def test_validation_prompts_of_a_precomputed_run(
    saved: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grids are those of a run with its encoders in memory; here they are loaded once, before
    the run folder is made, and are gone when training begins."""
    folder, file, out = saved("sd15"), prompts_file(tmp_path), tmp_path / "out"
    assert run("precompute", folder, "--prompts", file, "--output", out) == 0
    loads: list[weakref.ref[Any]] = []

    def watched(*given: Any) -> Teacher:
        assert not (tmp_path / "stored").exists()
        teacher = load_encoders(*given)
        loads.append(weakref.ref(teacher.pipeline.text_encoder))
        return teacher

    def began(*given: Any, **more: Any) -> FitResult:
        gc.collect()
        assert all(encoder() is None for encoder in loads)
        return fit(*given, **more)

    monkeypatch.setattr("stepdistill.distil.validation.load_encoders", watched)
    monkeypatch.setattr("stepdistill.distil.run.fit", began)
    told = ["--validation_prompts", "a cat", "a dog by the sea", "a fox", *NO_GAN]
    told += ["--sample_every=2", "--method.guidance_scale=3", *options("sd15")]
    assert train(folder, tmp_path / "stored", "--data", out, *told) == 0
    assert len(loads) == 1
    assert train(folder, tmp_path / "memory", "--prompts", file, *told) == 0
    assert len(loads) == 1
    stored_grid, grid = (tmp_path / r / "samples/000002.png" for r in ("stored", "memory"))
    assert stored_grid.read_bytes() == grid.read_bytes()
    assert Image.open(grid).size == (3 * 50 - 2, 4 * 50 - 2)


@pytest.mark.parametrize(
    ("name", "says"),
    [("dit", "is not told by text"), ("wan-i2v", "goes on from first frames")],
)
def test_validation_prompts_that_do_not_tell(
    name: str, says: str, saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence, before there is a run folder."""
    data = ["--prompts", pictures(tmp_path / "images", 3)] if name == "wan-i2v" else []
    given = [*data, *options(name), *NO_GAN, "--validation_prompts", "a fox"]
    assert train(saved(name), tmp_path / "run", *given) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- images


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_latents_of_captioned_images(name: str, saved: Folder, tmp_path: Path) -> None:
    """x0 are the autoencoder's of each cropped image, the conditionings those of its caption and,
    for SDXL, of its own size and crop."""
    folder, out, images = saved(name), tmp_path / "out", pictures(tmp_path / "images")
    assert run("precompute", folder, "--data", images, "--output", out) == 0
    data, teacher = load_shards(out), load_teacher(folder)
    x0, cond = data.fetch([0, 1, 2, 3, 4])
    assert x0 is not None
    cropped = [crop_to(Image.open(images / f"{i}.png"), Size(16, 16)) for i in range(5)]
    pixels = torch.stack([to_tensor(one.image) for one in cropped])
    assert torch.equal(x0, teacher.family.encode_images(teacher, pixels))
    expected = dict(teacher.encode(PROMPTS))
    if name == "sdxl":
        ids = torch.tensor([[16, 16, 0, 0], [12, 30, 0, 12], [40, 20, 8, 0], [17, 33, 0, 7]])
        assert cond["time_ids"][:4, :4].tolist() == ids.tolist()
        assert cond["time_ids"][:, 4:].tolist() == [[16, 16]] * 5
        expected["time_ids"] = cond["time_ids"]
    assert same(cond, Conditioning(expected))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.slow
def test_buckets_and_a_gan_on_them(saved: Folder, tmp_path: Path) -> None:
    """Latents of several shapes, each told its size; DMD2 with the GAN trains on their batches."""
    folder, out = saved("sdxl"), tmp_path / "out"
    images = pictures(tmp_path / "images", 20)
    given = ["--data", images, "--output", out, "--buckets", "true", "--bucket_step=4"]
    assert run("precompute", folder, *given, "--shard_size=4") == 0
    data = load_shards(out)
    shapes = set()
    for group in data.groups:
        x0, cond = data.fetch(list(group))
        assert x0 is not None
        shapes.add(tuple(x0.shape[2:]))
        assert cond["time_ids"][:, 4:].tolist() == [[2 * s for s in x0.shape[2:]]] * len(group)
    assert (8, 8) in shapes
    assert min(min(shape) for shape in shapes) == 4  # a head for 8x8 would not fit
    more = ["--data", out, "--method.critic_steps=1", "--max_steps=5"]
    assert train(folder, tmp_path / "run", *more) == 0


@pytest.mark.slow
def test_images_by_class(tmp_path: Path, saved: Folder) -> None:
    """A class-conditional latent teacher, which takes no images as they are."""
    folder, out = saved("dit"), tmp_path / "out"
    images = tmp_path / "images"
    for i, name in enumerate(("cat", "dog")):
        (images / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (90 * i, 20, 200)).save(images / name / "0.png")
    assert train(folder, tmp_path / "raw", "--data", images) == 2
    assert run("precompute", folder, "--data", images, "--output", out) == 0
    data, teacher = load_shards(out), load_teacher(folder)
    x0, cond = data.fetch([0, 1])
    assert cond["class_labels"].tolist() == [0, 1]
    pixels = torch.stack([to_tensor(Image.open(images / c / "0.png")) for c in ("cat", "dog")])
    assert x0 is not None
    assert torch.equal(x0, teacher.family.encode_images(teacher, pixels))
    assert train(folder, tmp_path / "run", "--data", out, method="ect") == 0


# ---- resuming


class Killed(BaseException):
    """Instead of a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompts", *slowly("images", "pairs")])
def test_a_killed_precomputation_goes_on_to_the_same_files(
    kind: str, saved: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in any of its batches, and run again."""
    given: list[object] = [saved("sd15"), "--shard_size=3", "--batch_size=2"]
    if kind == "images":
        given += ["--data", pictures(tmp_path / "i", 7), "--buckets=true", "--bucket_step=4"]
    else:
        given += ["--prompts", prompts_file(tmp_path)]
        given += ["--pairs=7", "--sampler_steps=2"] if kind == "pairs" else []
    assert run("precompute", *given, "--output", tmp_path / "whole") == 0
    encode = Teacher.encode
    for kill_at in (2, 3, 4):
        calls = itertools.count(1)

        def killed(teacher: Teacher, prompts: Any, at: int = kill_at, n: Any = calls) -> Any:
            if next(n) == at:
                raise Killed
            return encode(teacher, prompts)

        out = tmp_path / f"{kill_at}"
        with monkeypatch.context() as patch:
            patch.setattr(Teacher, "encode", killed)
            with pytest.raises(Killed):
                run("precompute", *given, "--output", out)
        assert not (out / "index.json").exists()
        assert run("precompute", *given, "--output", out) == 0
        assert contents(out) == contents(tmp_path / "whole")


# ---- pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", *slowly("sdxl", "flux", "wan-t2v")])
def test_pairs_are_the_stock_pipelines_samples(name: str, saved: Folder, tmp_path: Path) -> None:
    """x0 of pair i is what the stock pipeline makes of the noise of seed + i, and z is that noise;
    under guidance. The prompts repeat."""
    folder, out = saved(name), tmp_path / "out"
    file = prompts_file(tmp_path, PROMPTS[:2])
    scale = GUIDED.get(name, 3.0)
    given = ["--pairs=3", "--prompts", file, "--output", out, "--seed=5", *options(name)]
    more = ["--sampler_steps=3", f"--guidance_scale={scale}", "--batch_size=2"]
    assert run("precompute", folder, *given, *more) == 0
    data, teacher = load_shards(out), loaded(folder, name)
    family = teacher.family
    x0, _ = data.fetch([0, 1, 2])
    z = data.noise([0, 1, 2])
    assert x0 is not None
    assert z is not None
    assert data.texts([0, 1, 2]) == [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    teacher.pipeline.set_progress_bar_config(disable=True)
    for i, prompt in enumerate(data.texts([0, 1, 2])):
        call = {**family.call(teacher, [prompt]), **family.guidance_call(teacher, scale)}
        generator = torch.Generator().manual_seed(5 + i)
        own = torch.randn(teacher.sample_shape, generator=generator)
        assert torch.equal(z[i], own)
        generator.manual_seed(5 + i)
        expected = teacher.pipeline(
            **{**call, "output_type": "latent"},
            num_inference_steps=3,
            generator=[generator],
            return_dict=False,
        )[0]
        found = family.stock_output(teacher, x0[i : i + 1])
        assert (found - expected).abs().max() / expected.std() < 1e-4


@pytest.mark.slow
def test_pairs_can_be_added(saved: Folder, tmp_path: Path) -> None:
    """Three, then seven: the same files as seven at once, also where the writing was cut off."""
    given: list[object] = [saved("sd15"), "--prompts", prompts_file(tmp_path), "--shard_size=4"]
    given += ["--sampler_steps=2", "--batch_size=2"]
    assert run("precompute", *given, "--pairs=7", "--output", tmp_path / "at once") == 0
    out = tmp_path / "added"
    for count in (3, 3, 5, 7):
        assert run("precompute", *given, f"--pairs={count}", "--output", out) == 0
        assert len(load_shards(out)) == count
    assert contents(out) == contents(tmp_path / "at once")


def test_fewer_pairs_or_others_than_there_are(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is dropped, and no two kinds are mixed."""
    given: list[object] = [saved("dit"), "--sampler_steps=1", "--output", tmp_path / "o"]
    assert run("precompute", *given, "--pairs=3") == 0
    for more, words in (
        (["--pairs=2"], "was made from 3 inputs, and there are 2 now"),
        (["--pairs=4", "--seed=1"], "seed: 0 there, 1 now"),
        (["--pairs=4", "--guidance_scale=2"], "guidance_scale: 1.0 there, 2.0 now"),
    ):
        assert run("precompute", *given, *more) == 2
        assert words in capsys.readouterr().err
    assert len(load_shards(tmp_path / "o")) == 3


@pytest.mark.parametrize("scheduler", [DDPMScheduler, LCMScheduler], ids=lambda s: s.__name__)
def test_a_sampler_that_adds_noise_makes_no_pairs(
    scheduler: Any, saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is sampled."""
    folder = tmp_path / "model"
    shutil.copytree(saved("sd15"), folder)
    config = PIPELINES["sd15"]().scheduler.config
    scheduler.from_config(config).save_pretrained(folder / "scheduler")
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index.replace("PNDMScheduler", scheduler.__name__))
    given = ["--prompts", prompts_file(tmp_path), "--output", tmp_path / "out", "--pairs=2"]
    assert run("precompute", folder, *given) == 2
    said = capsys.readouterr().err
    assert f"is sampled by {scheduler.__name__}, which adds noise at each step" in said
    assert not (tmp_path / "out").exists()


# ---- refusals


@pytest.fixture(scope="module")
def encoded(saved: Folder, tmp_path_factory: pytest.TempPathFactory) -> ShardedData:
    """Prompts encoded by the tiny SD 1.5."""
    place = tmp_path_factory.mktemp("encoded")
    given = ["--prompts", prompts_file(place), "--output", place / "out"]
    assert run("precompute", saved("sd15"), *given) == 0
    return load_shards(place / "out")


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("sdxl", (), ["family: 'sd' there, 'sdxl' now", "precompute it with this teacher"]),
        ("sd15", ("--load.height=32",), ["sample_shape: [4, 8, 8] there", "same --load options"]),
        ("sd15", ("--method.gan_weight=1",), ["holds conditionings alone", "--data"]),
        ("sd15", ("--prompts=p.txt",), ["brings its own prompts: leave --prompts out"]),
    ],
    ids=["family", "size", "gan", "prompts"],
)
def test_a_folder_that_does_not_fit(
    name: str,
    more: tuple[str, ...],
    words: list[str],
    encoded: ShardedData,
    saved: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another family or size, a GAN without real samples."""
    given = ["--data", encoded.folder, *NO_GAN, *more]
    assert train(saved(name), tmp_path / "run", *given) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_network_of_other_widths(encoded: ShardedData, saved: Folder, tmp_path: Path) -> None:
    """SD 1.5's prompts are no prompts of SD 2.1, though both are of one family."""
    teacher = load_teacher(saved("sd15"))
    check_teacher(encoded, teacher)
    config = teacher.denoiser.backbone.network.config
    teacher.denoiser.backbone.network._internal_dict = type(config)(
        {**config, "cross_attention_dim": 1024}
    )
    with pytest.raises(UserError, match=r"cross_attention_dim: \d+ there, 1024 now"):
        check_teacher(encoded, teacher)


def test_a_folder_that_is_not_complete(
    encoded: ShardedData, saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its index, or the file beside its samples."""
    for missing, words in (
        ("index.json", "is not complete: run its precomputation again"),
        ("beside.safetensors", "beside.safetensors is missing"),
    ):
        folder = tmp_path / missing
        shutil.copytree(encoded.folder, folder)
        (folder / missing).unlink()
        assert train(saved("sd15"), tmp_path / "run", "--data", folder, *NO_GAN) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "nothing to precompute: give --prompts, --data or --pairs"),
        (["--data=d", "--prompts=p"], "--data brings its own captions"),
        (["--prompts=p", "--buckets=true"], "buckets are of images"),
        (["--pairs=2", "--limit=3"], "limit is of prompts or captions"),
        (["--prompts=p", "--guidance_scale=3"], "are of pairs: give --pairs"),
        (["--pairs=2", "--seed=99999999999999999999"], "seed must lie in 0 to"),
        (["--pairs=-1"], "pairs must be at least 0, got -1"),
        (["--prompts=p", "--batch_size=0"], "batch_size must be at least 1"),
        (["--prompts=p", "--device=gpu"], "there is no device gpu here"),
        (["--pairs=2"], "is told by text: give --prompts"),
        (["--prompts=none.txt"], "none.txt"),
    ],
    ids=str,
)
def test_wrong_options(
    given: list[str],
    words: str,
    saved: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sentence, and nothing written."""
    assert run("precompute", saved("sd15"), "--output", tmp_path / "out", *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_is_needed(saved: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("precompute", saved("sd15"), "--prompts=p") == 2
    assert "precompute needs --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("wan-t2v", ["--data", "IMAGES"], "makes videos, and --data brings images"),
        ("dit", ["--prompts", "p.txt"], "is told by classes, not by prompts"),
        ("dit", ["--data", "IMAGES", "--buckets=true"], "takes images of one size"),
        ("sd15", ["--data", "IMAGES", "--buckets=true"], "must be a multiple of 64"),
        ("sd15", ["--data", "IMAGES", "--buckets=true", "--bucket_step=2"], ""),
        ("sd15", ["--pairs=1", "--prompts", "PROMPTS", "--load.height=3"], "multiple of 4"),
    ],
    ids=str,
)
def test_what_a_family_cannot_take(
    name: str,
    more: list[str],
    words: str,
    saved: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Named before anything is encoded; sizes that the network cannot take are left out."""
    places = {"IMAGES": str(pictures(tmp_path / "i")), "PROMPTS": str(prompts_file(tmp_path))}
    given = [places.get(word, word) for word in more]
    wanted = 2 if words else 0
    size = [] if name in ("dit", "sd15") else options(name)
    assert run("precompute", saved(name), "--output", tmp_path / "o", *given, *size) == wanted
    assert words in capsys.readouterr().err
    if not words:
        shapes = {tuple(shard.shapes["x0"][1:]) for shard in load_shards(tmp_path / "o").shards}
        assert len(shapes) > 1
        assert all(side % 2 == 0 for shape in shapes for side in shape)


def test_a_missing_extra_is_named(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Parquet needs pyarrow, which not every installation has."""
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    file = tmp_path / "p.parquet"
    file.write_bytes(b"PAR1")
    given = ["--prompts", file, "--output", tmp_path / "out"]
    assert run("precompute", saved("sd15"), *given) == 2
    assert "stepdistill[data]" in capsys.readouterr().err


# ---- regression, then DMD2


@pytest.mark.slow
def test_regression_and_then_dmd2_from_its_student(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SDXL's recipe at t = 0.4 on the tiny model: pairs, warm-up, DMD2 that starts from it."""
    folder, pairs = saved("sdxl"), tmp_path / "pairs"
    given = ["--prompts", prompts_file(tmp_path), "--pairs=6", "--sampler_steps=2"]
    assert run("precompute", folder, *given, "--output", pairs) == 0
    plan = ["--times=[0.4]", "--ema_half_life=0"]
    warm = tmp_path / "warm"
    more = ["--data", pairs, *plan, "--method.lr=1e-3"]
    assert train(folder, warm, *more, method="regression") == 0
    start = ["--init", warm, *plan, "--data", pairs, "--method.gan_weight=0"]
    rates = ["--method.generator_lr=1e-30", "--method.critic_steps=1", "--weight_decay=0"]
    assert train(folder, tmp_path / "run", *start, *rates) == 0

    def unet(student: Path) -> dict[str, Tensor]:
        return load_file(student / "unet" / "diffusion_pytorch_model.safetensors")

    teacher, first, then = (unet(p) for p in (folder, warm / "student", tmp_path / "run/student"))
    assert first.keys() == then.keys()
    assert all(torch.equal(first[k], then[k]) for k in first)
    assert not all(torch.equal(teacher[k], first[k]) for k in teacher)
    capsys.readouterr()
    for path, words in (
        (tmp_path, "is no student and holds none"),
        (saved("sd15"), "is a student of the family sd, and"),
    ):
        assert train(folder, tmp_path / "new", *rates, *start, "--init", path) == 2
        assert words in capsys.readouterr().err
    assert train(folder, tmp_path / "new", *rates, *start, "--lora.rank=2") == 2
    assert "init starts a generator with all its weights" in capsys.readouterr().err


def test_regression_needs_pairs_and_one_step(
    saved: Folder, encoded: ShardedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named before training."""
    given = ["--data", encoded.folder]
    assert train(saved("sd15"), tmp_path / "run", *given, method="regression") == 2
    assert "learns from pairs of noise and sample" in capsys.readouterr().err
    assert train(saved("sd15"), tmp_path / "run", *given, "--steps=2", method="regression") == 2
    assert "regression trains one step, and the plan has 2" in capsys.readouterr().err


@pytest.mark.slow
def test_regression_on_the_digits_lowers_the_distance(tmp_path: Path) -> None:
    """One step from a noise level of 10, on 64 pairs of the bundled teacher: those of other seeds
    come nearer too."""
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    for folder, seed in ((seen, 0), (unseen, 1000)):
        given = ["--pairs=64", "--sampler_steps=9", "--batch_size=64", f"--seed={seed}"]
        assert run("precompute", "digits", *given, "--output", folder) == 0
    teacher, times = load_teacher("digits"), preset.times(1)
    given = ["--teacher=digits", "--data", seen, "--output", tmp_path / "run", "--batch_size=64"]
    more = [f"--times={times}", "--max_steps=30", "--method.lr=1e-3", "--ema_half_life=0"]
    more += ["--lr_warmup=0", "--lr_decay=0"]
    assert run("train", "regression", *given, *more) == 0
    student = full("generator", teacher.student())  # with the null class that exports lack
    start_from(tmp_path / "run", student, teacher)
    rows = [r.backbone.network.class_embedding.weight for r in (student.module, teacher.denoiser)]
    assert torch.equal(rows[0][10], rows[1][10])
    plan, pairs = StepPlan(tuple(times)), load_shards(unseen)
    x0, cond = pairs.fetch(list(range(64)))
    z = pairs.noise(list(range(64)))
    assert x0 is not None
    assert z is not None

    @torch.no_grad()
    def distance(denoiser: Denoiser) -> float:
        x_t = start(plan, denoiser.schedule, z)
        x0_hat = denoiser(x_t, plan.time(0, x_t), cond).x0_hat
        return squared_error(x0_hat, x0).mean().item()

    before, after = distance(teacher.student()), distance(student.module)
    print(f"DISTANCE before {before:.3f}, after {after:.3f}")
    assert after < 0.9 * before


@pytest.mark.slow
def test_encoding_loads_no_network(saved: Folder) -> None:
    """Its weights stay on the disk; the encoders' are the same as those of the whole teacher."""
    for name in ("sdxl", "dit", "wan22-t2v"):
        teacher, whole = load_encoders(saved(name)), load_teacher(saved(name))
        assert all(parameter.is_meta for parameter in teacher.denoiser.parameters())
        assert same(teacher.encode(teacher.examples(2)), whole.encode(whole.examples(2)))
        assert teacher.sample_shape == whole.sample_shape
        assert teacher.num_classes == whole.num_classes


# ---- columns, splits and the first of a source


def told_twice(folder: Path) -> Path:
    """Prompts under two names that are not looked for, and images that the same file captions."""
    pictures(folder, 3)
    for text in folder.glob("*.txt"):
        text.unlink()
    rows = [f"{i}.png,{PROMPTS[i]}".replace(", ", " ") + f",number {i}" for i in range(3)]
    file = folder / "metadata.csv"
    file.write_text("\n".join(["file_name,TEXT,other", *rows]))
    return file


def test_a_column_and_the_first_by_option(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of prompts and of images alike; a folder goes on with the same ones alone."""
    file, teacher = told_twice(tmp_path / "images"), saved("sd15")
    of_prompts = ["precompute", teacher, "--prompts", file, "--output", tmp_path / "p"]
    assert run(*of_prompts) == 2
    assert "and none of prompt, caption, text: name one by --column" in capsys.readouterr().err
    assert run(*of_prompts, "--column=other") == 0
    assert load_shards(tmp_path / "p").texts([0, 1, 2]) == ["number 0", "number 1", "number 2"]
    assert run(*of_prompts, "--column=TEXT") == 2
    assert "column: 'other' there, 'TEXT' now" in capsys.readouterr().err
    of_images = ["precompute", teacher, "--data", file.parent, "--output", tmp_path / "i"]
    assert run(*of_images, "--column=other", "--limit=2") == 0
    assert load_shards(tmp_path / "i").texts([0, 1]) == ["number 0", "number 1"]
    assert len(load_shards(tmp_path / "i")) == 2
    assert run(*of_images, "--column=other", "--split=test") == 2
    assert "has no splits, and so no test" in capsys.readouterr().err


def test_pairs_of_another_column_are_others(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = told_twice(tmp_path / "images")
    given = ["precompute", saved("sd15"), "--prompts", file, "--output", tmp_path / "out"]
    assert run(*given, "--pairs=2", "--column=other") == 0
    assert load_shards(tmp_path / "out").texts([0, 1]) == ["number 0", "number 1"]
    assert run(*given, "--pairs=3", "--column=TEXT") == 2
    assert "column: 'other' there, 'TEXT' now" in capsys.readouterr().err


def test_a_training_on_a_column_of_its_prompts(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The named one, and no other after it; without prompts it would be passed over."""
    file, teacher = told_twice(tmp_path / "images"), saved("sd15")
    given = [teacher, tmp_path / "run", *NO_GAN, "--max_steps=1"]
    assert train(*given, "--prompts", file, "--column=other") == 0
    assert train(*given, "--prompts", file, "--column=TEXT", "--max_steps=2") == 2
    assert "column: 'other' there, 'TEXT' now" in capsys.readouterr().err
    assert train(*given, "--data=d", "--column=TEXT") == 2
    assert "column is of prompts: give --prompts, or leave --column out" in capsys.readouterr().err


def test_classes_have_no_column(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["precompute", saved("dit"), "--output", tmp_path / "out", "--data", tmp_path]
    assert run(*given, "--column=TEXT", "--limit=2") == 2
    assert "column, limit is of prompts or captions" in capsys.readouterr().err


# ---- captions dropped for guidance


def test_a_training_that_is_never_told(saved: Folder, tmp_path: Path) -> None:
    """With every caption dropped it does not matter what they say."""
    students = []
    for texts, dropout in ((PROMPTS, 1), (["others", *PROMPTS[:4]], 1), (PROMPTS, 0)):
        place = tmp_path / str(len(students))
        place.mkdir()
        more = ["--prompts", prompts_file(place, texts), f"--condition_dropout={dropout}"]
        assert train(saved("sd15"), place / "run", *more, *NO_GAN) == 0
        students.append(network(place / "run"))
    never, never_either, told = students
    assert never == never_either
    assert never != told


def network(run: Path) -> bytes:
    return (run / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_run_with_dropped_captions_goes_on_exactly(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression on pairs: stopped and gone on with, it is the straight run, and not the one that
    is told everything; another probability is another run."""
    file, pairs = prompts_file(tmp_path), tmp_path / "pairs"
    given = ["precompute", saved("sd15"), "--prompts", file, "--output", pairs]
    assert run(*given, "--pairs=6", "--sampler_steps=2") == 0

    def trained(place: str, probability: float, steps: int) -> int:
        more = [f"--condition_dropout={probability}", f"--max_steps={steps}", "--method.lr=1e-3"]
        given = [saved("sd15"), tmp_path / place, "--data", pairs, *more]
        return train(*given, method="regression")

    assert trained("straight", 0.5, 4) == trained("stopped", 0.5, 2) == 0
    assert trained("stopped", 0.5, 4) == trained("told", 0, 4) == 0
    assert network(tmp_path / "stopped") == network(tmp_path / "straight")
    assert network(tmp_path / "told") != network(tmp_path / "straight")
    assert trained("straight", 0.2, 5) == 2
    assert "condition_dropout: 0.5 there, 0.2 now" in capsys.readouterr().err


def test_dropping_captions_needs_something_to_show_instead(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flux has no null conditioning; and a probability has its bounds."""
    file = prompts_file(tmp_path)
    for name, probability, words in (
        ("flux", 0.1, "condition_dropout=0.1 needs a teacher with a null conditioning"),
        ("sd15", 1.5, "condition_dropout must lie in [0, 1], got 1.5"),
    ):
        more = ["--prompts", file, f"--condition_dropout={probability}", *options(name), *NO_GAN]
        assert train(saved(name), tmp_path / "run", *more) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
