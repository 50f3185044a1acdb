"""torch.compile of repeated blocks: what it must not change, and whom it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from commands import needs_compiler
from test_families import load, rms, x0_and_gradient
from torch import nn

from stepdistill.compiling import compile_blocks, compile_repeated
from stepdistill.distil import build_method, read_settings
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.plans import StepPlan
from stepdistill.roles import LoRAOptions, full

RANKS = {"sd15": 0, "flux": 2}  # a U-Net with full roles, a transformer with LoRA roles
OUTPUT, GRADIENT = 1e-5, 1e-4  # largest difference, in root mean squares of what is expected


def built(name: str, compiled: bool) -> DMD2:
    """DMD2 with the GAN where the network has a tap; the critic is not the teacher."""
    torch.manual_seed(0)
    teacher = load(name)
    gan = 1e-2 if teacher.denoiser.backbone.taps else 0.0
    config = DMD2Config(gan_weight=gan, critic_steps=1)
    method = DMD2.from_teacher(teacher, StepPlan.uniform(1), config, LoRAOptions(rank=RANKS[name]))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in ("generator", "critic"):
            for tensor in method.roles[role].trainable().values():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=draw))
    if compiled:
        compile_repeated(method, teacher.denoiser, "aot_eager")
    cond = teacher.encode(teacher.examples(2))
    x0 = torch.randn(2, *teacher.sample_shape, generator=draw)
    method.batch = Batch(x0, cond, Draws(0, 1, "generator", range(1)))  # type: ignore[attr-defined]
    return method


def compiled_modules(module: nn.Module) -> int:
    return sum(m._compiled_call_impl is not None for m in module.modules())


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_a_dmd2_loss_through_compiled_blocks(name: str) -> None:
    """x0_hat of the generator, and the value and every gradient of DMD2's generator loss through
    the teacher and the critic's frozen view, against eager; names of weights stay.

    As traced, differentiated and called without kernels of its own: those take minutes here.
    """
    plain, fast = built(name, False), built(name, True)
    t, found = torch.tensor([0.9, 0.3]), {}
    for method in (plain, fast):
        batch = method.batch  # type: ignore[attr-defined]
        loss = method.generator_loss(batch).value
        loss.backward()
        trained = method.generator.trainable()
        gradient = torch.cat([p.grad.flatten() for p in trained.values()])
        with torch.no_grad():
            x0_hat = method.generator.frozen(batch.x0, t, batch.cond).x0_hat
        found[method is fast] = (x0_hat, loss.detach(), gradient)
    worst = [rms(a, b) for a, b in zip(found[True], found[False], strict=True)]
    print(name, worst)
    assert worst[0] < OUTPUT
    assert worst[1] < OUTPUT
    assert worst[2] < GRADIENT
    for one, other in zip(plain.roles.values(), fast.roles.values(), strict=True):
        assert list(one.module.state_dict()) == list(other.module.state_dict())
    for view in (fast.generator.module, fast.generator.frozen, fast.critic.frozen):
        assert compiled_modules(view) > 0
    assert compiled_modules(plain.generator.module) == 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_compiled_kernels_agree(name: str) -> None:
    """x0_hat and its gradient in all weights of a compiled network, against eager."""
    teacher = load(name)
    plain = full("generator", teacher.student()).module.eval()
    fast = full("generator", teacher.student()).module.eval()
    compile_blocks(fast)
    expected, found = (x0_and_gradient(denoiser, teacher) for denoiser in (plain, fast))
    worst = [rms(a, b) for a, b in zip(found, expected, strict=True)]
    print(name, worst)
    assert worst[0] < OUTPUT
    assert worst[1] < GRADIENT


@pytest.mark.slow
def test_copies_and_views() -> None:
    """A view that is made later is compiled too; a copy, which exports are made of, is not."""
    role = full("critic", load("sd15").denoiser)
    role.change(compile_blocks)
    assert compiled_modules(role.module) == compiled_modules(role.frozen) == 4
    role.drop_view()
    assert compiled_modules(role.frozen) == 4
    assert compiled_modules(copy.deepcopy(role.module)) == 0


def test_who_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that names no blocks, and a machine without a compiler, get a sentence."""
    with pytest.raises(UserError, match="DiTTransformer2DModel names no blocks to compile"):
        compile_blocks(load("dit").denoiser)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        compile_repeated(None, load("sd15").denoiser)  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.slow
def test_the_option() -> None:
    """compile_blocks reaches the teacher and each role; not together with a teacher in fp8."""
    teacher, given = load("sd15"), ["--teacher=tiny", "--output=o", "--method.gan_weight=0"]
    for asked, count in (("false", 0), ("true", 4)):
        settings = read_settings("dmd2", [*given, f"--compile_blocks={asked}"])
        method = build_method("dmd2", settings, teacher)
        assert compiled_modules(teacher.denoiser) == count
        assert [compiled_modules(role.module) for role in method.roles.values()] == [count] * 2
    settings = read_settings("dmd2", [*given, "--compile_blocks", "--memory.teacher_fp8"])
    with pytest.raises(UserError, match="in 8 bits"):
        build_method("dmd2", settings, load("sd15"))
