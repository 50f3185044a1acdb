"""Scorers against the code that published their numbers, on tiny random networks."""

from __future__ import annotations

import pickle
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clips import (
    NAME,
    PROMPTS,
    SIDE,
    SIZES,
    TOWERS,
    open_clip_file,
    pictures,
    transformers_folder,
)
from torch import Tensor
from torchmetrics.multimodal import CLIPScore
from torchvision.transforms import CenterCrop
from transformers import AutoModel, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from stepdistill.errors import UserError
from stepdistill.metrics.features import Pixels, Scorer, digest
from stepdistill.metrics.scorers import SCORERS
from stepdistill.metrics.scorers import scorer as open_scorer
from stepdistill.metrics.scorers.aesthetic import Head, aesthetic_score
from stepdistill.metrics.scorers.checkpoints import read_weights
from stepdistill.metrics.scorers.hpsv2 import fitted, hps_score
from stepdistill.metrics.scorers.open_clip_score import open_clip_score
from stepdistill.metrics.scorers.pickscore import pick_score
from stepdistill.metrics.scorers.torchmetrics_clip_score import torchmetrics_clip_score


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reaches for the network fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a scorer reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    return pictures()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of open_clip's architecture NAME."""
    return open_clip_file(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of transformers."""
    return transformers_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the aesthetic score, for embeddings of 16."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(Head(16).state_dict(), file)
    return file


def published(file: Path) -> tuple[Any, Callable[[Image.Image], Tensor]]:
    """open_clip's own way to a network and to its preparation of images."""
    network, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=str(file))
    return network.eval().float(), preprocess


@torch.no_grad()
def test_clip_score_of_dmd2(images: list[Pixels], weights: Path) -> None:
    """The caption's tokens are cut at 77, then "a photo depicts" is put behind the first of them,
    and the last column ends the text where it was cut."""
    network, preprocess = published(weights)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    tokens = tokenizer(list(PROMPTS))
    prefix = tokenizer(["A photo depicts "])[:, 1:4].expand(len(tokens), -1)
    tokens = torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], dim=1)[:, :77]
    tokens[:, 76] = torch.where(tokens[:, 76] > 0, 49407, 0)
    prepared = []
    for pixels in images:
        image = Image.fromarray(pixels)
        image = CenterCrop(min(image.size))(image)
        prepared.append(preprocess(image.resize((256, 256), Image.LANCZOS)))
    images_, texts = network.encode_image(torch.stack(prepared)), network.encode_text(tokens)
    scorer = open_clip_score(NAME, weights)
    scores = scorer.of_pixels(images, PROMPTS)
    torch.testing.assert_close(scores, F.cosine_similarity(images_, texts), rtol=0, atol=1e-6)
    assert scorer.sha256 == digest(weights)
    assert scores.std() > 0.01
    bare = F.cosine_similarity(images_, network.encode_text(tokenizer(list(PROMPTS))))
    assert (scores - bare).abs().min() > 1e-4  # the prefix is heard


@torch.no_grad()
def test_hpsv2_of_its_authors(images: list[Pixels], weights: Path, tmp_path: Path) -> None:
    """From a checkpoint in half precision under "state_dict", features of norm 1 multiplied; the
    longer side fitted and black around, where open_clip's own preparation would crop."""
    state = {key: value.half() for key, value in torch.load(weights).items()}
    torch.save({"state_dict": state}, tmp_path / "hps.pt")
    network, preprocess = published(weights)
    network.load_state_dict(state)
    prepared = []
    for pixels in images:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        scale = SIDE / max(image.shape[2:])
        size = [round(side * scale) for side in image.shape[2:]]
        small = F.interpolate(image, size, mode="bicubic", antialias=True)
        down, across = SIDE - size[0], SIDE - size[1]
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        normal = preprocess.transforms[-1]
        prepared.append(normal(F.pad(small, edges)[0]))
    image = network.encode_image(torch.stack(prepared), normalize=True)
    text = network.encode_text(open_clip.get_tokenizer(NAME)(list(PROMPTS)), normalize=True)
    scores = hps_score(NAME, tmp_path / "hps.pt").of_pixels(images, PROMPTS)
    torch.testing.assert_close(scores, (image @ text.T).diagonal(), rtol=0, atol=1e-6)
    cropped = torch.stack([preprocess(Image.fromarray(pixels)) for pixels in images])
    wide = [i for i, (height, width) in enumerate(SIZES) if height != width]
    other = (network.encode_image(cropped, normalize=True) * text).sum(1)
    assert (scores - other)[wide].abs().min() > 1e-4


def test_fitted_images_are_framed_in_black() -> None:
    """A white image twice as high as wide: white in the middle half of the columns, and no more."""
    framed = fitted(np.full((64, 32, 3), 255, np.uint8), 16)
    assert framed.shape == (3, 16, 16)
    assert framed[:, :, 4:12].sub(1).abs().max() < 1e-5
    assert framed[:, :, :4].eq(0).all()
    assert framed[:, :, 12:].eq(0).all()


class Bare(CLIPModel):  # type: ignore[misc]
    """transformers' CLIP with the bare embeddings that torchmetrics expects of it."""

    def get_image_features(self, *args: Any, **options: Any) -> Any:
        return super().get_image_features(*args, **options).pooler_output

    def get_text_features(self, *args: Any, **options: Any) -> Any:
        return super().get_text_features(*args, **options).pooler_output


@pytest.mark.filterwarnings("ignore:Encountered caption longer")
def test_clip_score_of_torchmetrics(images: list[Pixels], folder: Path) -> None:
    """Each image's, before the mean is clipped at 0, and the mean; prompts beyond 77 tokens too."""
    model = Bare.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), tokenizer)
    metric = CLIPScore(lambda: (model, processor))
    tensors = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in images]
    each = []
    for image, prompt in zip(tensors, PROMPTS, strict=True):
        metric.reset()
        metric.update(image, prompt)
        each.append(metric.score)
    scores = torchmetrics_clip_score(str(folder)).of_pixels(images, PROMPTS)
    torch.testing.assert_close(scores, torch.stack(each), rtol=0, atol=1e-5)
    metric.reset()
    metric.update(tensors, list(PROMPTS))
    torch.testing.assert_close(scores.mean().clamp(min=0), metric.compute(), rtol=0, atol=1e-5)
    assert scores.std() > 1


@torch.no_grad()
def test_pickscore_of_its_authors(images: list[Pixels], folder: Path) -> None:
    """Image by image, as their README calls it."""
    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    model = AutoModel.from_pretrained(folder).eval()
    each = []
    for pixels, prompt in zip(images, PROMPTS, strict=True):
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        inputs = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
        image = model.get_image_features(**inputs).pooler_output
        text = model.get_text_features(**processor(text=prompt, **options)).pooler_output
        image, text = image / image.norm(dim=-1), text / text.norm(dim=-1)
        each.append((model.logit_scale.exp() * (text @ image.T))[0, 0])
    scores = pick_score(str(folder)).of_pixels(images, PROMPTS)
    torch.testing.assert_close(scores, torch.stack(each), rtol=0, atol=1e-5)
    assert scores.std() > 0.1


def openai_names(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """transformers' vision tower under OpenAI's names, which open_clip keeps."""
    names = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        **{f"pre_layrnorm.{x}": f"ln_pre.{x}" for x in ("weight", "bias")},
        **{f"post_layernorm.{x}": f"ln_post.{x}" for x in ("weight", "bias")},
    }
    for theirs, ours in names.items():
        yield ours, state[f"vision_model.{theirs}"]
    yield "proj", state["visual_projection.weight"].T
    for i in range(2):
        layer, block = f"vision_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for x in ("weight", "bias"):
            parts = [state[f"{layer}.self_attn.{p}_proj.{x}"] for p in "qkv"]
            yield f"{block}.attn.in_proj_{x}", torch.cat(parts)
            yield f"{block}.attn.out_proj.{x}", state[f"{layer}.self_attn.out_proj.{x}"]
            for n in (1, 2):
                yield f"{block}.ln_{n}.{x}", state[f"{layer}.layer_norm{n}.{x}"]
            yield f"{block}.mlp.c_fc.{x}", state[f"{layer}.mlp.fc1.{x}"]
            yield f"{block}.mlp.c_proj.{x}", state[f"{layer}.mlp.fc2.{x}"]


@torch.no_grad()
def test_aesthetic_of_its_author(images: list[Pixels], folder: Path, head: Path) -> None:
    """OpenAI's network as open_clip builds it, with its GELU and its preparation of images, and the
    published head by its layers' names; the prompts change nothing."""
    network = open_clip.CLIP(**TOWERS, quick_gelu=True).eval()
    network.visual.load_state_dict(dict(openai_names(load_file(folder / "model.safetensors"))))
    preprocess = open_clip.image_transform(SIDE, is_train=False)
    state = torch.load(head)
    prepared = torch.stack([preprocess(Image.fromarray(pixels)) for pixels in images])
    x = network.encode_image(prepared).numpy()
    x = torch.from_numpy(x / np.linalg.norm(x, axis=-1, keepdims=True))
    for i in (0, 2, 4, 6, 7):
        x = F.linear(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
    scorer = aesthetic_score(head, str(folder))
    scores = scorer.of_pixels(images, PROMPTS)
    torch.testing.assert_close(scores, x[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(scores, scorer.of_pixels(images, [""] * len(images)))
    assert scores.unique().numel() == len(images)
    assert digest(head) in scorer.sha256
    assert digest(folder / "model.safetensors") in scorer.sha256


MAKERS: dict[str, Callable[[Path, Path, Path], Scorer]] = {
    "clip-vit-g-14": lambda weights, folder, head: open_clip_score(NAME, weights),
    "clip-torchmetrics": lambda weights, folder, head: torchmetrics_clip_score(str(folder)),
    "hpsv2": lambda weights, folder, head: hps_score(NAME, weights),
    "pickscore": lambda weights, folder, head: pick_score(str(folder)),
    "aesthetic": lambda weights, folder, head: aesthetic_score(head, str(folder)),
}


@pytest.mark.parametrize("name", SCORERS)
def test_scores_do_not_depend_on_the_batch(
    name: str, images: list[Pixels], weights: Path, folder: Path, head: Path
) -> None:
    """One by one, in two parts and at once, in float32; each scorer that is listed."""
    scorer = MAKERS[name](weights, folder, head)
    at_once = scorer.of_pixels(images, PROMPTS)
    assert at_once.shape == (len(images),)
    assert at_once.dtype == torch.float32
    for cut in ([1] * len(images), [2, 3]):
        parts, begin = [], 0
        for count in cut:
            end = begin + count
            parts.append(scorer.of_pixels(images[begin:end], PROMPTS[begin:end]))
            begin = end
        torch.testing.assert_close(torch.cat(parts), at_once, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCORERS)
def test_preparation_can_be_sent_to_a_process(
    name: str, images: list[Pixels], weights: Path, folder: Path, head: Path
) -> None:
    prepare = MAKERS[name](weights, folder, head).prepare
    sent = pickle.loads(pickle.dumps(prepare))
    for pixels in images:
        assert torch.equal(sent(pixels), prepare(pixels))


@pytest.mark.parametrize("name", SCORERS)
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    """A sentence with what is missing, and where to put what."""
    with pytest.raises(UserError, match=r"there is no (file|folder) .*elsewhere: fetch .* name"):
        open_scorer(name, {name: str(tmp_path / "elsewhere")})


def test_the_aesthetic_head_takes_the_clip_that_is_named(
    images: list[Pixels], folder: Path, head: Path, tmp_path: Path
) -> None:
    """``--weights aesthetic=FILE clip-torchmetrics=FOLDER``, as the sentence on a missing folder
    says."""
    weights = {"aesthetic": str(head), "clip-torchmetrics": str(folder)}
    scores = open_scorer("aesthetic", weights).of_pixels(images, PROMPTS)
    assert torch.equal(scores, aesthetic_score(head, str(folder)).of_pixels(images, PROMPTS))
    weights["clip-torchmetrics"] = str(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no folder .*elsewhere: .*--weights clip-torchmetrics="):
        open_scorer("aesthetic", weights)


@pytest.mark.parametrize("name", ["clip.bin", "clip.safetensors"])
def test_truncated_weights_are_refused(name: str, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(torch.load(weights), file)
        assert read_weights(file).keys() == torch.load(weights).keys()
    else:
        shutil.copy(weights, file)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=f"{name} is truncated"):
        open_clip_score(NAME, file)


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    """Also where open_clip itself would stretch the position embedding to fit."""
    state = torch.load(weights)
    longer = {**state, "visual.positional_embedding": torch.zeros(26, 32)}
    torch.save(longer, tmp_path / "longer.bin")
    open_clip.create_model(NAME, pretrained=str(tmp_path / "longer.bin"))  # it does
    with pytest.raises(UserError, match=r"another network \(visual.positional_embedding is \[26"):
        open_clip_score(NAME, tmp_path / "longer.bin")
    del state["ln_final.weight"]
    torch.save(state, tmp_path / "less.bin")
    with pytest.raises(UserError, match=r"\(ln_final.weight is none there, \[32\] here\)"):
        hps_score(NAME, tmp_path / "less.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(UserError, match="holds no state dict"):
        open_clip_score(NAME, tmp_path / "list.bin")


def test_a_head_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(Head(24).state_dict(), tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"layers.0.weight is \[1024, 24\] there, \[1024, 16\]"):
        aesthetic_score(tmp_path / "head.pth", str(folder))


def damaged(folder: Path, place: Path, damage: Callable[[Path], None]) -> Path:
    shutil.copytree(folder, place)
    damage(place)
    return place


def cut(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


def lessen(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, place / "model.safetensors", {"format": "pt"})


def reshape(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    state["visual_projection.weight"] = torch.zeros(8, 32)
    save_file(state, place / "model.safetensors", {"format": "pt"})


def forget(file: str) -> Callable[[Path], None]:
    return lambda place: (place / file).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "holds no CLIPModel"),
        (lessen, "holds no CLIPModel: it has no text_projection.weight"),
        (reshape, "holds no CLIPModel"),
        (forget("model.safetensors"), "holds no CLIPModel"),
        (forget("config.json"), "holds no CLIPModel"),
        (forget("preprocessor_config.json"), "lacks the tokenizer or the preparation"),
        (forget("tokenizer.json"), "lacks the vocabulary"),
    ],
)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], None], message: str, folder: Path, tmp_path: Path
) -> None:
    """None of the weights is made up, and no vocabulary."""
    place = damaged(folder, tmp_path / "clip", damage)
    with pytest.raises(UserError, match=message):
        torchmetrics_clip_score(str(place))


def test_a_missing_package_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r'needs open_clip .*pip install "stepdistill\[scores\]"'):
        open_clip_score(NAME, weights)
