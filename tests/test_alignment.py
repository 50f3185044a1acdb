"""SwiftBrush v2's alignment: the law of its clamp, its gradient, its CLIPs, the way of prompts."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from commands import check_exports_here, draw_no_report, run
from PIL import Image
from run_tiny import Stub, digest, go
from tiny_clips import NAME, PROMPTS, SIDE, open_clip_file, smooth, transformers_folder
from tiny_pipelines import PIPELINES
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from stepdistill.conditioning import ConditionDropout, Conditioning
from stepdistill.data import TensorData
from stepdistill.data.loading import Micro
from stepdistill.decoding import Decoder
from stepdistill.distil.checks import check_told
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.families import of_pipeline
from stepdistill.losses import clamped_alignment
from stepdistill.methods import SNOOPI, VSD, SNOOPIConfig, VSDConfig
from stepdistill.methods.alignment import Alignment, AlignmentOptions
from stepdistill.methods.base import Batch, Loss
from stepdistill.plans import StepPlan
from stepdistill.runs import read_metrics
from stepdistill.teachers import LoadOptions, Teacher, load_teacher
from stepdistill.towers import load_towers

TEXTS = ("a red cat", "a blue dog on a hill")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reaches for the network fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of transformers."""
    return str(transformers_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One of open_clip's architecture NAME."""
    return str(open_clip_file(tmp_path_factory.mktemp("open_clip")))


@pytest.fixture(params=["transformers", "open_clip"])
def towers(request: pytest.FixtureRequest, folder: str, file: str) -> Any:
    if request.param == "transformers":
        return load_towers(folder, "", "cpu")
    return load_towers(file, NAME, "cpu")


@pytest.fixture(scope="module")
def latent() -> Teacher:
    """A tiny Stable Diffusion: latents of pictures 16x16."""
    family: Any = of_pipeline("StableDiffusionPipeline", "tiny")
    teacher: Teacher = family.teacher(PIPELINES["sd15"](), "tiny", LoadOptions("float32", 16, 16))
    return teacher


class Angles(nn.Module):
    """Towers of known cosines: a picture is (cos a, sin a) of its mean a, every text (1, 0)."""

    calls = 0

    def image_features(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        a = pixels.flatten(1).mean(1)
        return 3 * torch.stack([a.cos(), a.sin()], 1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[0.5, 0.0]]).expand(len(texts), 2)


def aligned(tau: float = 0.5, weight: float = 0.1, decay: int = 10) -> Alignment:
    """Of pictures as they are, by Angles."""
    options = AlignmentOptions(align_weight=weight, align_decay=decay, align_tau=tau)
    return Alignment(nn.Identity(), Angles(), options)


def flat(*angles: float) -> Tensor:
    """Pictures of one value each."""
    return torch.tensor(angles)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()


# --- the law ----------------------------------------------------------------------------------


def test_the_clamp() -> None:
    """max(0, tau - cos): by hand at three angles, of features of any length; above tau the loss is
    0 and so is its gradient, below it the gradient is sin(a)."""
    a = torch.tensor([0.2, 1.2, 2.0], requires_grad=True)
    image = 7 * torch.stack([a.cos(), a.sin()], 1)
    found = clamped_alignment(image, torch.tensor([[0.1, 0.0]]).expand(3, 2), 0.5)
    expected = torch.tensor([0.0, 0.5 - math.cos(1.2), 0.5 - math.cos(2.0)])
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert a.grad is not None
    assert a.grad[0] == 0
    torch.testing.assert_close(a.grad[1:], a.detach().sin()[1:])


def test_the_loss_of_pictures() -> None:
    """By hand; grey is seen in three channels; a sample that is told nothing counts as 0, and gets
    no gradient; a video's loss is the mean of its frames."""
    loss, x0 = aligned(), flat(1.2, 2.0, 0.2, 2.0).requires_grad_()
    found = loss(x0, ("a", "b", "c", " "))
    expected = [0.5 - math.cos(1.2), 0.5 - math.cos(2.0), 0.0, 0.0]
    torch.testing.assert_close(found, torch.tensor(expected))
    found.mean().backward()
    assert x0.grad is not None
    reached = x0.grad.flatten(1).ne(0).all(1)
    assert reached.tolist() == [True, True, False, False]
    assert x0.grad[2:].eq(0).all()
    assert loss(x0, ("", "", "", "")).eq(0).all()
    video = torch.stack([flat(1.2, 2.0), flat(2.0, 0.2)], 2)
    by_frame = (loss(video[:, :, 0], ("a", "b")) + loss(video[:, :, 1], ("a", "b"))) / 2
    torch.testing.assert_close(loss(video, ("a", "b")), by_frame)


def test_the_weight_falls_linearly_to_nothing() -> None:
    loss = aligned(weight=0.1, decay=1000)
    assert loss.weight(1) == 0.1
    assert loss.weight(501) == pytest.approx(0.05)
    assert loss.weight(1000) == pytest.approx(0.0001)
    assert loss.weight(1001) == loss.weight(5000) == 0
    steps = np.diff([loss.weight(i) for i in range(1, 1002)])
    assert np.allclose(steps, -0.0001)


def test_it_stands_beside_any_loss() -> None:
    """value + w(i) mean gap; nothing is decoded once w is 0; data without prompts is a sentence."""
    loss, x0, other = aligned(decay=10), flat(1.2, 0.2), Loss(torch.tensor(2.0), {})
    batch = Batch(None, Conditioning.empty(2), Draws(0, 6, "generator"), texts=("a", "b"))
    found = loss.beside(other, x0, batch)
    gap = (0.5 - math.cos(1.2)) / 2
    assert float(found.value) == pytest.approx(2 + 0.05 * gap)
    assert float(found.logs["alignment"]) == pytest.approx(gap)
    late = batch._replace(draws=Draws(0, 11, "generator"))
    towers: Any = loss.towers
    before = towers.calls
    ended = loss.beside(other, x0, late)
    assert ended.value is other.value
    assert [float(value) for value in ended.logs.values()] == [0.0]
    assert towers.calls == before
    with pytest.raises(UserError, match="the data does not know any: give --prompts"):
        loss.beside(other, x0, batch._replace(texts=None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"align_weight": 0.1}, "needs align_decay"),
        ({"align_weight": -1.0, "align_decay": 5}, "align_weight must be at least 0"),
        ({"align_tau": 1.5}, r"in \[-1, 1\]"),
    ],
)
def test_values_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        VSDConfig(**options)


# --- its CLIPs --------------------------------------------------------------------------------


def test_towers_are_those_of_their_libraries(no_network: None, folder: str, file: str) -> None:
    """Pictures of the CLIP's own size, and longer texts than it takes, as the libraries' own
    preparation and tokens have them."""
    images = [smooth((SIDE, SIDE), seed) for seed in range(3)]
    pixels = torch.stack([torch.from_numpy(i).permute(2, 0, 1) / 127.5 - 1 for i in images])
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")
    limits = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    words = CLIPTokenizer.from_pretrained(folder)(list(PROMPTS), **limits)
    ours: Any = load_towers(folder, "", "cpu")
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(ours.image_features(pixels), expected, rtol=0, atol=1e-4)
        texts = model.get_text_features(**words).pooler_output
        torch.testing.assert_close(ours.text_features(PROMPTS), texts, rtol=0, atol=1e-5)
    network, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=file)
    network = network.eval()
    ours = load_towers(file, NAME, "cpu")
    with torch.no_grad():
        prepared = torch.stack([preprocess(Image.fromarray(i)) for i in images])
        expected = network.encode_image(prepared)
        torch.testing.assert_close(ours.image_features(pixels), expected, rtol=0, atol=1e-4)
        texts = network.encode_text(open_clip.get_tokenizer(NAME)(list(PROMPTS)))
        torch.testing.assert_close(ours.text_features(PROMPTS), texts, rtol=0, atol=1e-5)


@torch.no_grad()
def test_other_sizes_are_seen_as_published(towers: Any, folder: str) -> None:
    """Larger, smaller and wide pictures: as PIL resizes and crops them, up to its rounding."""
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    for seed, size in enumerate([(64, 64), (16, 16), (48, 80)]):
        image = smooth(size, seed)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        exact = processor(images=[image], do_normalize=False, return_tensors="pt")["pixel_values"]
        found = towers.image_features(pixels)
        expected = towers.image_features(exact * 2 - 1)
        assert found.shape == expected.shape == (1, 16)
        assert F.cosine_similarity(found, expected) > 0.999


def test_the_gradient_reaches_x0_and_no_weight(towers: Any, latent: Teacher) -> None:
    """Through the decoder and the image tower: x0 is not detached before it is seen (the mistake of
    a public copy). It is the gradient: a small step along it raises the cosine."""
    options = AlignmentOptions(align_weight=0.1, align_decay=10, align_tau=1.0)
    loss = Alignment(Decoder(latent), towers, options)
    x0 = noise(2, *latent.sample_shape).requires_grad_()
    value = loss(x0, TEXTS)
    value.mean().backward()
    assert x0.grad is not None
    assert x0.grad.isfinite().all()
    assert x0.grad.flatten(1).ne(0).any(1).all()
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())
    assert latent.pipeline.vae in loss.modules()
    with torch.no_grad():
        length = x0.grad.square().sum()
        after = loss(x0 - 1e-3 * x0.grad / length.sqrt(), TEXTS)
        fall = float((value - after).mean() / (1e-3 * length.sqrt()))
    assert fall == pytest.approx(1, abs=0.05)


def test_a_clip_that_is_not_there(no_network: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nothing: .*--method.align_scorer FOLDER"):
        load_towers(str(tmp_path / "nothing"), "", "cpu")
    with pytest.raises(UserError, match="needs the file of its weights, and align_scorer=none"):
        load_towers("", NAME, "cpu")


# --- VSD with it ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "config"), [(VSD, VSDConfig), (SNOOPI, SNOOPIConfig)])
def test_vsd_adds_it_to_its_matching(kind: Any, config: Any, latent: Teacher, folder: str) -> None:
    """On one batch: the plain method's loss, and the weight of the iteration times the mean gap of
    the very x0 that is matched. Every trainable tensor has a finite gradient."""
    given = {"align_weight": 0.1, "align_decay": 10, "align_tau": 0.9, "align_scorer": folder}
    own = config(critic_rank=2, **given)
    assert own.decodes
    method = kind.from_teacher(latent, StepPlan(), own)
    plain = kind.from_teacher(latent, StepPlan(), config(critic_rank=2))
    assert method.needs_texts
    assert not plain.needs_texts
    with torch.no_grad():
        for parameter in method.critic.trainable().values():
            parameter.normal_(std=0.05)
    plain.critic = method.critic
    batch = Batch(None, latent.encode(TEXTS), Draws(0, 6, "generator"), texts=TEXTS)
    loss = method.generator_loss(batch)
    matching = plain.generator_loss(batch._replace(draws=Draws(0, 6, "generator")))
    with torch.no_grad():
        again = batch._replace(draws=Draws(0, 6, "generator"))
        x0 = method.student(method.generator.frozen, again)
        gap = method.alignment(x0, TEXTS).mean()
    torch.testing.assert_close(loss.logs["alignment"], gap, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.value, matching.value + 0.05 * loss.logs["alignment"])
    assert gap > 0
    weights = list(method.generator.trainable().values())
    gradients = torch.autograd.grad(loss.value - matching.value.detach(), weights)
    bare = torch.autograd.grad(matching.value, list(plain.generator.trainable().values()))
    assert all(g.isfinite().all() for g in gradients)
    assert any((g - h).abs().max() > 1e-6 for g, h in zip(gradients, bare, strict=True))


# --- how prompts come to the loss -------------------------------------------------------------


class Reads(Stub):
    """A method that keeps what it was told."""

    needs_texts = True

    def __init__(self) -> None:
        super().__init__(critic=False)
        self.seen: list[tuple[list[int], tuple[str, ...] | None]] = []

    def generator_loss(self, batch: Batch) -> Loss:
        assert batch.x0 is not None
        self.seen.append((batch.x0.flatten().int().tolist(), batch.texts))
        return super().generator_loss(batch)


def numbered(count: int = 40, known: bool = True) -> TensorData:
    x0, words = torch.arange(float(count))[:, None], tuple(f"number {i}" for i in range(count))
    return TensorData(x0, Conditioning.empty(count), prompts=words if known else None)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"workers": 1}], ids=str)
def test_each_sample_brings_its_own_prompt(settings: dict[str, Any], tmp_path: Path) -> None:
    """In whatever order, micro-batches and processes; and only where a method asks for them."""
    method = Reads()
    go(method, numbered(), tmp_path / "run", max_steps=4, batch_size=8, shards=4, **settings)
    assert len(method.seen) == 4 * settings.get("accumulate", 1)
    for numbers, texts in method.seen:
        assert texts == tuple(f"number {i}" for i in numbers)
    other = Reads()
    other.needs_texts = False
    go(other, numbered(), tmp_path / "other", max_steps=1, batch_size=8, shards=4)
    unknown = Reads()
    go(unknown, numbered(known=False), tmp_path / "unknown", max_steps=1, batch_size=8, shards=4)
    assert other.seen[0][1] is unknown.seen[0][1] is None


def test_a_resumed_run_reads_the_same_prompts(tmp_path: Path) -> None:
    straight, first, second = Reads(), Reads(), Reads()
    short = {"batch_size": 8, "shards": 4}
    go(straight, numbered(), tmp_path / "straight", max_steps=6, **short)
    go(first, numbered(), tmp_path / "cut", max_steps=3, **short)
    go(second, numbered(), tmp_path / "cut", max_steps=6, **short)
    assert first.seen + second.seen == straight.seen


def test_condition_dropout_hides_the_prompt_too() -> None:
    """A sample that is shown the null conditioning is not held to its prompt."""
    labels = torch.arange(1, 1001)
    micro = Micro(range(4), None, Conditioning({"k": labels}), texts=("a prompt",) * 1000)
    dropout = ConditionDropout(0.3, Conditioning({"k": torch.zeros(1, dtype=torch.long)}))
    found = micro.untold(dropout, Draws(0, 1, "condition", range(4)))
    hidden = found.cond["k"] == 0
    assert 200 < int(hidden.sum()) < 400
    assert found.texts is not None
    assert [not text for text in found.texts] == hidden.tolist()
    again = dropout(micro.cond, Draws(0, 1, "condition", range(4)))
    assert torch.equal(again["k"], found.cond["k"])  # the draws are as they were
    assert micro._replace(texts=None).untold(dropout, Draws(0, 1, "c", range(4))).texts is None


def test_data_without_prompts_is_refused(latent: Teacher) -> None:
    told = TensorData(None, Conditioning.empty(2), prompts=TEXTS)
    check_told(told, latent)
    with pytest.raises(UserError, match="the data knows none: give --prompts"):
        check_told(replace(told, prompts=None), latent)
    with pytest.raises(UserError, match="digits is not told by text: set it to 0"):
        check_told(told, load_teacher("digits"))


# --- from the command line ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion and a file of prompts."""
    place = tmp_path_factory.mktemp("text")
    PIPELINES["sd15"]().save_pretrained(place / "teacher")
    (place / "prompts.txt").write_text("a red cat\na blue dog\nthree apples\n")
    return place


SIZE = ("--load.height", 16, "--load.width", 16)
OWN = ("--method.align_weight", 0.1, "--method.align_decay", 4, "--method.align_tau", 0.9)


@pytest.mark.slow
def test_runs_end_where_they_end_uninterrupted(
    place: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Straight, stopped in the middle, and in two micro-batches; and precomputed prompts, whose
    teacher has no text encoder, but the weights of its autoencoder."""
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
    told = ("--prompts", place / "prompts.txt")

    def train(output: str, steps: int, *more: object) -> Path:
        short = ("--max_steps", steps, "--batch_size", 4, "--shards", 4, "--log_every", 1)
        own = (*SIZE, *OWN, "--method.critic_rank", 2, "--method.align_scorer", folder, *more)
        given = ("--teacher", place / "teacher", "--output", tmp_path / output)
        assert run("train", "vsd", *given, *own, *short) == 0
        return tmp_path / output

    straight = train("straight", 5, *told)
    train("cut", 2, *told)
    assert digest(train("cut", 5, *told) / "student") == digest(straight / "student")
    logs = [line for line in read_metrics(straight / "metrics.jsonl") if "generator/loss" in line]
    weights = [line["generator/alignment_weight"] for line in logs]
    assert weights == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    accumulated = train("accumulated", 1, *told, "--accumulate", 2)
    first = read_metrics(accumulated / "metrics.jsonl")[0]
    assert first["generator/loss"] == pytest.approx(logs[0]["generator/loss"], rel=1e-4)
    encode = (place / "teacher", *told, *SIZE, "--output", tmp_path / "encoded")
    assert run("precompute", *encode) == 0
    stored = train("stored", 1, "--data", tmp_path / "encoded")
    found = read_metrics(stored / "metrics.jsonl")[0]
    assert found["generator/alignment"] == pytest.approx(logs[0]["generator/alignment"], rel=1e-4)


@pytest.mark.slow
def test_its_memory_is_estimated(
    place: Path, folder: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without data, with either CLIP: its weights are counted, and the update is rehearsed."""
    plain = ("inspect", place / "teacher", "--method", "vsd", *SIZE, "--batch_size", 4, "--json")
    assert run(*plain) == 0
    before = json.loads(capsys.readouterr().out)
    for source, architecture in ((folder, ""), (file, NAME)):
        named = ("--method.align_scorer", source, "--method.align_architecture", architecture)
        assert run(*plain, *OWN, *named) == 0
        after = json.loads(capsys.readouterr().out)
        assert "problem" not in after
        towers: Any = load_towers(source, architecture, "cpu")
        size = sum(p.numel() * p.element_size() for p in towers.parameters())
        part = next(part for part in after["parts"] if part["name"] == "of the losses")
        assert part["weights"] >= size
        assert after["updates"]["critic"]["moving"] == before["updates"]["critic"]["moving"]
        assert after["updates"]["generator"]["moving"] > before["updates"]["generator"]["moving"]
