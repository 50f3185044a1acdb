"""LPIPS as a loss: the package's own value, and where its gradient goes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
import torch.nn.functional as F
from commands import run
from run_tiny import go
from tiny import tiny_teacher
from tiny_pipelines import PIPELINES
from torch import Tensor, nn
from torchvision.models import vgg16

from stepdistill import perceptual
from stepdistill.data import TensorData
from stepdistill.decoding import Decoder
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.families import of_pipeline
from stepdistill.losses import mean_pseudo_huber, squared_error
from stepdistill.methods import DMD, DMDConfig, Regression, RegressionConfig
from stepdistill.methods.base import Batch
from stepdistill.perceptual import BACKBONE, LPIPS, large_enough, lpips_of, vgg_lpips
from stepdistill.plans import StepPlan
from stepdistill.teachers import LoadOptions, Teacher, load_teacher


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where torchvision keeps its own, under their name; the classifier, of which
    nothing is made use, is one zero each in the file."""
    folder = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vgg16().state_dict().items()}
    state = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        state[name] = torch.zeros(()).expand(shape)
        if name.startswith("features") and name.endswith("weight"):
            state[name] = noise(*shape, seed=seed) * (2 / shape[1:].numel()) ** 0.5
        elif name.startswith("features"):
            state[name] = 0.1 * noise(*shape, seed=seed)
    torch.save(state, folder / BACKBONE.file)
    return folder / BACKBONE.file


@pytest.fixture(scope="module")
def own_name(weights: Path) -> str:
    """The same file under a name of its own: the published name asks for the published file."""
    other = weights.with_name("random.pth")
    other.symlink_to(weights)
    return str(other)


@pytest.fixture(scope="module")
def network(weights: Path) -> nn.Module:
    return vgg_lpips(weights)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are brought to 32 pixels instead of 224, which takes a fiftieth of the time."""
    monkeypatch.setattr(perceptual, "SIDE", 32)


@pytest.fixture(scope="module")
def latent() -> Teacher:
    """A tiny Stable Diffusion: latents of pictures 16x16."""
    family: Any = of_pipeline("StableDiffusionPipeline", "tiny")
    teacher: Teacher = family.teacher(PIPELINES["sd15"](), "tiny", LoadOptions("float32", 16, 16))
    return teacher


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
def test_the_value_is_that_of_the_package(
    weights: Path, network: nn.Module, latent: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same pictures: decoded latents brought to 224x224, in the network that the package
    itself builds of torchvision's file."""
    monkeypatch.setenv("TORCH_HOME", str(weights.parent.parent.parent))
    theirs = lpips.LPIPS(net="vgg", version="0.1", verbose=False)
    x0_hat, x0 = noise(2, *latent.sample_shape), noise(2, *latent.sample_shape, seed=1)
    with torch.no_grad():
        a, b = latent.decode(x0_hat), latent.decode(x0)
        assert a.shape == (2, 3, 16, 16)
        a, b = (F.interpolate(p, size=224, mode="bilinear") for p in (a, b))
        expected = theirs(a, b).flatten()
        found = LPIPS(network, Decoder(latent))(x0_hat, x0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.min() > 0.01


def test_large_pictures_stay_as_they_are() -> None:
    """Below 224 the shorter side becomes 224 and the longer keeps its proportion."""
    assert large_enough(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 224, 224)
    assert large_enough(torch.zeros(1, 3, 112, 168)).shape == (1, 3, 224, 336)
    exact = noise(1, 3, 224, 300)
    assert large_enough(exact) is exact
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert torch.allclose(large_enough(ramp), F.interpolate(ramp, size=224, mode="bilinear"))


def test_the_gradient_reaches_the_students_x0_alone(network: nn.Module, latent: Teacher) -> None:
    """Through the decoder, whose weights get none, nor do the network's or the pair's x0."""
    distance = LPIPS(network, Decoder(latent))
    x0_hat = noise(1, *latent.sample_shape).requires_grad_()
    x0 = noise(1, *latent.sample_shape, seed=1).requires_grad_()
    distance(x0_hat, x0).sum().backward()
    assert x0_hat.grad is not None
    assert x0_hat.grad.isfinite().all()
    assert x0_hat.grad.ne(0).all()
    assert x0.grad is None
    assert latent.pipeline.vae in distance.modules()
    assert not any(p.requires_grad or p.grad is not None for p in distance.parameters())


def test_grey_digits_and_flat_pictures(network: nn.Module, small: None, tmp_path: Path) -> None:
    """8x8 grey; a gradient is a number where every feature of a layer is 0, and where both are one
    and the same. Each pair has its own distance."""
    distance = LPIPS(network, Decoder(tiny_teacher(tmp_path / "teacher")))
    x0_hat, x0 = noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1)
    found = distance(x0_hat, x0)
    assert found.shape == (2,)
    torch.testing.assert_close(found[1:], distance(x0_hat[1:], x0[1:]))
    dead = vgg_dead(network)
    for net in (network, dead):
        flat = torch.full((1, 1, 8, 8), -1.0, requires_grad=True)
        value = LPIPS(net, distance.decoder)(flat, torch.full((1, 1, 8, 8), -1.0))
        value.sum().backward()
        assert value.eq(0).all()
        assert flat.grad is not None
        assert flat.grad.eq(0).all()


def vgg_dead(network: nn.Module) -> nn.Module:
    """With a second layer that no picture wakes."""
    dead = copy.deepcopy(network)
    state = dead.state_dict()
    for name in ("net.slice2.7.weight", "net.slice2.7.bias"):
        state[name].fill_(0).sub_(float(name.endswith("bias")))
    return dead


def test_a_videos_distance_is_the_mean_of_its_frames(network: nn.Module, small: None) -> None:
    distance = LPIPS(network, nn.Identity())
    video, other = noise(2, 3, 2, 8, 8), noise(2, 3, 2, 8, 8, seed=1)
    frames = torch.stack([distance(video[:, :, i], other[:, :, i]) for i in range(2)])
    torch.testing.assert_close(distance(video, other), frames.mean(0))


def test_the_options_choose_the_distance(latent: Teacher, own_name: str) -> None:
    """The methods' own distances without it, LPIPS with it, and a sentence for half of it."""
    assert Regression.from_teacher(latent, StepPlan(), RegressionConfig()).distance is squared_error
    assert DMD.from_teacher(latent, StepPlan(), DMDConfig()).distance is mean_pseudo_huber
    kinds: list[Any] = [Regression, DMD]
    for kind in kinds:
        config = kind.Config(lpips=True, lpips_weights=own_name)
        assert isinstance(kind.from_teacher(latent, StepPlan(), config).distance, LPIPS)
        assert config.decodes
        with pytest.raises(UserError, match="set lpips=true too"):
            kind.from_teacher(latent, StepPlan(), kind.Config(lpips_weights=own_name))


def test_weights_are_found_and_checked(
    weights: Path, latent: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BACKBONE.variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(weights.parent.parent.parent))
    with pytest.raises(UserError, match=r"is truncated, or not vgg16-397923af.pth"):
        lpips_of(latent)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no weights of torchvision's VGG-16: .*--method.lpips_weights FILE"
    ):
        lpips_of(latent)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    monkeypatch.setenv(BACKBONE.variable, str(tmp_path / "part.pth"))
    with pytest.raises(UserError, match=r"part.pth holds the weights of another network"):
        lpips_of(latent)


def test_dmd_adds_the_weighted_distance(latent: Teacher, own_name: str, small: None) -> None:
    """On one batch by hand, at the x0 that the student makes of the pair's own noise."""
    config = DMDConfig(lpips=True, lpips_weights=own_name, regression_weight=0.25)
    method = DMD.from_teacher(latent, StepPlan(), config)
    with torch.no_grad():  # an untrained pair of scores has no difference
        for parameter in method.critic.trainable().values():
            parameter.mul_(1.02)
    cond = latent.encode(["a cat", "a dog"])
    x0, z = noise(2, *latent.sample_shape), noise(2, *latent.sample_shape, seed=1)
    batch = Batch(x0, cond, Draws(0, 1, "generator"), z)
    loss = method.generator_loss(batch)
    plain = DMD.from_teacher(latent, StepPlan(), DMDConfig(regression_weight=0.0))
    plain.critic = method.critic
    matching = plain.generator_loss(batch._replace(draws=Draws(0, 1, "generator"))).logs["matching"]
    with torch.no_grad():
        schedule = latent.denoiser.schedule
        t = torch.ones(2, dtype=torch.float64)
        x_1 = schedule.add_noise(torch.zeros_like(z), t, z)
        expected = method.distance(method.generator.frozen(x_1, t, cond).x0_hat, x0).mean()
    torch.testing.assert_close(loss.logs["regression"], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss.value.detach(), matching + 0.25 * loss.logs["regression"])
    loss.value.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in method.generator.trainable().values()
    )


@pytest.mark.slow
def test_dmd_trains_an_iteration_on_the_captioned_digits(
    own_name: str, small: None, tmp_path: Path
) -> None:
    """Of pairs in memory: every trainable tensor moves, the autoencoder and the network do not."""
    teacher = load_teacher("digits-t2i")
    config = DMDConfig(lpips=True, lpips_weights=own_name, guidance_scale=1.4)
    method = DMD.from_teacher(teacher, StepPlan((0.8,)), config)
    texts = ["a red seven", "two", "a large blue five", "a picture of a nine"]
    shape = (4, *teacher.sample_shape)
    data = TensorData(noise(*shape), teacher.encode(texts), noise(*shape, seed=1))
    distance = method.distance
    assert isinstance(distance, LPIPS)
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    moved = {name: p.detach().clone() for name, p in method.generator.trainable().items()}
    go(method, data, tmp_path / "run", max_steps=1, batch_size=4, shards=4)
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())
    for name, parameter in method.generator.trainable().items():
        assert not torch.equal(parameter, moved[name]), name


@pytest.mark.slow
def test_its_memory_is_estimated(
    own_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without data: VGG-16 is counted, and the update is rehearsed."""
    PIPELINES["sd15"]().save_pretrained(tmp_path / "teacher")
    plain = ("inspect", tmp_path / "teacher", "--method", "dmd", "--batch_size", 2, "--json")
    assert run(*plain, "--method.lpips", "--method.lpips_weights", own_name) == 0
    found = json.loads(capsys.readouterr().out)
    assert "problem" not in found
    part = next(part for part in found["parts"] if part["name"] == "of the losses")
    assert part["parameters"] > 14_714_688  # VGG-16's convolutions
