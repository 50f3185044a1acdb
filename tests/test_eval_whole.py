"""Whole runs of the published protocols on tiny random models of the right size: what the command
says of the images it saved, by PIL, torch-fidelity, clean-fid, open_clip and numpy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from commands import run
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from test_fid_command import weights as weights
from tiny import tiny_teacher_folder
from tiny_clips import TOWERS, open_clip_file
from tiny_pipelines import image as tiny_images
from tiny_pipelines import schedulers
from tiny_pipelines.weights import with_random_weights
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.functional import center_crop

from stepdistill.evaluation.models.subject import load_subject
from stepdistill.evaluation.reading.archives import InFolder
from stepdistill.evaluation.running.engine import Engine
from stepdistill.evaluation.running.work import Shard
from stepdistill.metrics.features import Pixels

Rows = NDArray[np.float64]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Run the command and read the record it wrote."""

    def command(model: object, protocol: str, *more: object) -> dict[str, Any]:
        output = tmp_path / "record.json"
        assert run("eval", model, "--protocol", protocol, "--output", output, *more) == 0
        record: dict[str, Any] = json.loads(output.read_text())
        return record

    return command


def pixels_in(folder: Path) -> list[Pixels]:
    """All images of a folder by their names, in colour."""
    return [np.array(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir())]


def photographs(folder: Path, sizes: Sequence[tuple[int, int]], seed: int = 0) -> Path:
    """Blobs with grain of heights and widths ``sizes``, as PNG: no two resizes of them agree."""
    draw = np.random.default_rng(seed)
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
        pixels = (smooth + draw.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def alike(model: Path, count: int) -> Pixels:
    """Samples of other seeds, a little darker: some are inside a ball of the model's own."""
    subject = load_subject(str(model), steps=2)
    told = ["a photograph"] * count if subject.model.is_told_by_text else [*range(count)]
    x0 = subject.sample(told, range(1000, 1000 + count)).permute(0, 2, 3, 1)
    pixels: Pixels = ((x0.clamp(-1, 1) + 1) * 120).round().numpy().astype(np.uint8)
    return pixels


def by_torch_fidelity(weights: Path, images: Sequence[Pixels]) -> Rows:
    """Features (N, 2048) of the network in ``weights``, resized by torch-fidelity as TensorFlow 1
    did."""
    layers, rows = torch.jit.load(str(weights)).layers, []
    for pixels in images:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        resized = interpolate_bilinear_2d_like_tensorflow1x(image, (299, 299), align_corners=False)
        rows.append(layers((resized - 128) / 128))
    found: Rows = torch.cat(rows).detach().double().numpy()
    return found


def by_clean_fid(weights: Path, folder: Path) -> Rows:
    """Features (N, 2048) by clean-fid's folder reader, resize and network."""
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    found = get_folder_features(
        str(folder),
        InceptionV3W(str(weights.parent), download=False),
        num_workers=0,
        device=torch.device("cpu"),
        verbose=False,
    )
    return np.asarray(found, np.float64)


def squares(folder: Path, to: Path, side: int) -> Path:
    """The middle of each image as torchvision crops it, resized with PIL's LANCZOS."""
    to.mkdir()
    for file in folder.iterdir():
        image = Image.open(file).convert("RGB")
        square = center_crop(image, min(image.size))
        square.resize((side, side), Image.Resampling.LANCZOS).save(to / file.name)
    return to


def distance(x: Rows, y: Rows) -> float:
    """The Frechet distance of Gaussians fitted to rows: the trace of (S R)^(1/2) is the sum of the
    singular values of X Y', with X and Y centred and divided by (N - 1)^(1/2)."""
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    between = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(between + (a**2).sum() + (b**2).sum() - 2 * root)


def published(file: Path, rows: Rows, **more: Pixels) -> Path:
    """Moments as EDM's and ADM's files hold them."""
    np.savez(file, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False), **more)
    return file


def autoencoder() -> AutoencoderKL:
    """Stable Diffusion's form, which shrinks by eight."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_imagenet64_edm(
    weights: Path, tmp_path: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDM's FID of 64x64 pixels against moments from a file that the environment names; of one
    repeat, no minimum of three."""
    model = tiny_teacher_folder(
        tmp_path / "model", sample_size=64, in_channels=3, out_channels=3, num_class_embeds=11
    )
    real = by_torch_fidelity(weights, pixels_in(photographs(tmp_path / "real", [(64, 64)] * 12)))
    reference = published(tmp_path / "imagenet-64x64.npz", real)
    monkeypatch.setenv("STEPDISTILL_IMAGENET64_EDM_REFERENCE", str(reference))
    monkeypatch.setenv("STEPDISTILL_INCEPTION", str(weights))
    given = ("--num", 9, "--steps", 2, "--images", tmp_path / "images")
    record = evaluate(model, "imagenet64-edm", *given)
    images = pixels_in(tmp_path / "images")
    assert {pixels.shape for pixels in images} == {(64, 64, 3)}
    expected = distance(by_torch_fidelity(weights, images), real)
    assert record["metrics"] == {"fid": pytest.approx(expected, rel=1e-5)}
    assert "TensorFlow 1's bilinear" in record["extractors"]["inception-tf"]["resize"]
    assert "drawn by the image's seed" in record["sampling"]["told"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_imagenet256_adm(weights: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    """ADM's evaluation of a latent DiT of 256x256 pixels. A reference batch holds the moments of
    all of ImageNet, which FID is of, and fewer images, which precision and recall are of: here the
    two are of other images, so neither can stand for the other."""
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=32,
        num_embeds_ada_norm=1000,
    )
    pipeline = DiTPipeline(network, autoencoder(), schedulers.dit_scheduler())
    with_random_weights(pipeline, 0).save_pretrained(tmp_path / "dit")
    sides = [(256, 256)] * 14
    whole = by_torch_fidelity(weights, pixels_in(photographs(tmp_path / "whole", sides)))
    evaluated = ("--num", 12, "--steps", 2, "--weights", f"inception-tf={weights}")
    batch = np.stack(pixels_in(photographs(tmp_path / "batch", sides, seed=1)))
    batch[:5] = alike(tmp_path / "dit", 5)
    reference = published(tmp_path / "batch.npz", whole, arr_0=batch)
    given = ("--reference", reference, "--images", tmp_path / "images")
    record = evaluate(tmp_path / "dit", "imagenet256-adm", *evaluated, *given)
    images = pixels_in(tmp_path / "images")
    assert {pixels.shape for pixels in images} == {(256, 256, 3)}
    own, theirs = (by_torch_fidelity(weights, side) for side in (images, list(batch)))
    near = prc_features_to_metric(
        *(torch.from_numpy(rows) for rows in (own, theirs)),
        prc_neighborhood=3,
        prc_batch_size=5,
        save_cpu_ram=False,
        verbose=False,
    )
    classes = dict(torch.jit.load(str(weights)).named_parameters())["output.weight"]
    logits = torch.from_numpy(own) @ classes.detach().double().T
    score = isc_features_to_metric(logits, 10, True)["inception_score_mean"]
    expected = {
        "fid": distance(own, whole),
        "inception_score": score,
        "precision": near["precision"],
        "recall": near["recall"],
    }
    assert record["metrics"] == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    assert record["metrics"]["fid"] != pytest.approx(distance(own, theirs), rel=0.01)
    assert expected["precision"] != expected["recall"]
    assert score > 1 + 1e-4


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion of 320x320 pixels."""
    parts = tiny_images.sd15().components
    parts["unet"].register_to_config(sample_size=40)
    parts["vae"] = autoencoder()
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    folder = tmp_path_factory.mktemp("sd") / "sd15"
    with_random_weights(pipeline, 0).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of a tiny network that open_clip takes for ViT-g-14."""
    (tmp_path / "clip").mkdir()
    file = open_clip_file(tmp_path / "clip")
    monkeypatch.setitem(sys.modules["open_clip.factory"]._MODEL_CONFIGS, "ViT-g-14", TOWERS)
    return file


@torch.no_grad()
def cosines(clip: Path, folder: Path, prompts: Sequence[str]) -> Rows:
    """DMD2's CLIP score of each image and its prompt, by open_clip's own loader, preparation and
    tokens."""
    network, _, prepare = open_clip.create_model_and_transforms("ViT-g-14", pretrained=str(clip))
    files = sorted(squares(folder, folder.parent / "clip256", 256).iterdir())
    images = network.eval().encode_image(torch.stack([prepare(Image.open(f)) for f in files]))
    tokens = open_clip.get_tokenizer("ViT-g-14")([f"A photo depicts {p}" for p in prompts])
    texts = network.encode_text(tokens)
    found: Rows = torch.cosine_similarity(images, texts).double().numpy()
    return found


SIZES = ((300, 400), (400, 270), (256, 256), (90, 120), (301, 256), (64, 64), (512, 500))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("protocol", "variable", "side"),
    [("coco2014-30k", "COCO2014", 256), ("coco2017-5k", "COCO2017", None)],
)
def test_coco(
    protocol: str,
    variable: str,
    side: int | None,
    weights: Path,
    clip: Path,
    text_model: Path,
    tmp_path: Path,
    evaluate: Evaluate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FID by clean-fid and the CLIP score by open_clip, of samples of 320 pixels and photographs
    larger and smaller than 256: DMD2 brings both to squares of 256, the zero-shot protocol takes
    them whole. Everything is found by the environment."""
    prompts = [f"a photograph of {n} sheep, grazing" for n in ("one", "two", "three", "four")]
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(prompts))
    real = photographs(tmp_path / "real", SIZES)
    monkeypatch.setenv(f"STEPDISTILL_{variable}_PROMPTS", str(captions))
    monkeypatch.setenv(f"STEPDISTILL_{variable}_REFERENCE", str(real))
    monkeypatch.setenv("STEPDISTILL_INCEPTION", str(weights))
    monkeypatch.setenv("STEPDISTILL_CLIP_VIT_G_14", str(clip))
    samples = tmp_path / "images"
    record = evaluate(text_model, protocol, "--num", 6, "--steps", 2, "--images", samples)
    assert {pixels.shape for pixels in pixels_in(samples)} == {(320, 320, 3)}
    scores = cosines(clip, samples, (prompts * 2)[:6])
    seen = [
        folder if side is None else squares(folder, tmp_path / f"{folder.name}{side}", side)
        for folder in (samples, real)
    ]
    expected = {
        "fid": distance(*(by_clean_fid(weights, folder) for folder in seen)),
        "clip_score_vit_g_14": scores.mean(),
    }
    assert record["metrics"] == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    error = scores.std(ddof=1) / 6**0.5
    assert record["errors"]["clip_score_vit_g_14"] == pytest.approx(error, rel=1e-3)
    words = record["extractors"]["inception" if side is None else "inception-256px"]["resize"]
    assert ("LANCZOS to 256" in words) == (side == 256)
    assert "antialiased bicubic" in words


class Killed(Exception):
    """In place of the signal, which would end the tests too."""


@pytest.mark.parametrize("at", ["within the first shard", "after it"])
def test_images_of_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Killed before or after the first of three shards is written, and given again: all images are
    there, each as in a run in one go, and the value is that run's."""
    model = tiny_teacher_folder(tmp_path / "model")
    fixed = ("eval", model, "--protocol", "digits", "--num", 40, "--steps", 2, "--batch_size", 8)
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    assert run(*fixed, "--output", tmp_path / "whole.json", "--images", whole) == 0
    before = Engine._shard

    def killed(self: Engine, shard: Shard, bar: Any) -> None:
        if shard.number == 1:
            raise Killed
        before(self, shard, bar)
        if at == "within the first shard":
            self.work.file(shard.number).unlink()
            raise Killed

    output = ("--output", tmp_path / "again.json")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_shard", killed)
        with pytest.raises(Killed):
            run(*fixed, *output, "--images", kept)
    assert run(*fixed, *output, "--images", kept) == 0
    names = [file.name for file in sorted(whole.iterdir())]
    assert names == [f"{i:06d}.png" for i in range(40)]
    assert [file.name for file in sorted(kept.iterdir())] == names
    for name in names:
        assert (whole / name).read_bytes() == (kept / name).read_bytes()
    first, again = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "again"))
    assert first["metrics"] == again["metrics"]


def test_a_reference_of_images_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it was measured, and given again: it is not read, and the record is that of a
    run in one go; an image that has changed since is seen."""
    model = tiny_teacher_folder(tmp_path / "model")
    rows = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    (tmp_path / "real").mkdir()
    for i, row in enumerate(rows):
        Image.fromarray(row).save(tmp_path / "real" / f"{i:02d}.png")
    fixed = ("eval", model, "--protocol", "custom", "--features", "digits", "--steps", 2)
    fixed += ("--num", 40, "--reference", tmp_path / "real", "--metrics", "fid,kid")
    assert run(*fixed, "--output", tmp_path / "whole.json") == 0
    outputs = [("--output", tmp_path / f"{name}.json") for name in ("again", "changed")]

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_shard", killed)
        for output in outputs:
            with pytest.raises(Killed):
                run(*fixed, *output)
    opened: list[int] = []
    before = InFolder.open
    monkeypatch.setattr(InFolder, "open", lambda s, i: opened.append(i) or before(s, i))
    assert run(*fixed, *outputs[0]) == 0
    assert not opened
    first, again = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "again"))
    for part in ("metrics", "reference", "details", "notes"):
        assert first[part] == again[part]
    Image.fromarray(255 - rows[0]).save(tmp_path / "real" / "00.png")
    assert run(*fixed, *outputs[1]) == 0
    assert len(opened) == 20
    changed = json.loads((tmp_path / "changed.json").read_text())
    assert changed["metrics"]["fid"] != first["metrics"]["fid"]
