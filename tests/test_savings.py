"""Options that lower memory: what they change, what they must not, and whom they refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from commands import check_exports_here, draw_no_report, run
from diffusers.hooks import HookRegistry
from mid_networks import MIDS, denoiser, dmd2
from tiny_pipelines import PIPELINES
from torch import Tensor

from stepdistill.backbones.mlp import MLP
from stepdistill.denoisers import Backbone, Denoiser
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.fit import FitConfig
from stepdistill.footprint import parts_of
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2
from stepdistill.rehearsal import rehearse
from stepdistill.roles import Role, full
from stepdistill.savings import MemoryOptions, checkpoint_gradients, keep_in_fp8, save_memory


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mid_networks.SIZE", 16)


def gradients(method: DMD2) -> list[Tensor]:
    """Of both losses at roles that are not the teacher, with respect to all that learns."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in method.roles.values():
            for parameter in role.trainable().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    found = []
    for purpose, names in method.updates.items():
        cond = MIDS[method.name].conditioning("cpu")  # type: ignore[attr-defined]
        x0 = torch.randn(2, *method.sample_shape, generator=generator)
        loss = getattr(method, f"{purpose}_loss")(Batch(x0, cond, Draws(0, 1, purpose, (0,))))
        torch.autograd.backward(loss.value)
        for name in names:
            for parameter in method.roles[name].trainable().values():
                assert parameter.grad is not None
                found.append(parameter.grad)
                parameter.grad = None
        for role in method.roles.values():
            assert all(p.grad is None for p in role.module.parameters())
    return found


def built(name: str, rank: int, checkpointed: bool) -> DMD2:
    method = dmd2(MIDS[name], "cpu", rank=rank, gan=True, checkpointed=checkpointed)
    method.name = name  # type: ignore[attr-defined]
    return method


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["unet", "sd3", "dit"])
def test_checkpointing_changes_no_gradient(name: str, rank: int) -> None:
    """Both updates of DMD2 with the GAN through frozen views: the same bits, in less memory."""
    torch.manual_seed(1)
    plain = built(name, rank, checkpointed=False)
    torch.manual_seed(1)
    checkpointed = built(name, rank, checkpointed=True)
    pairs = zip(gradients(plain), gradients(checkpointed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in plain.real.modules())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in checkpointed.real.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "sd3"])
def test_checkpointing_takes_less(name: str) -> None:
    """Of both updates, the generator's through the critic's frozen view too."""
    mid, sizes = MIDS[name], []
    for checkpointed in (False, True):
        method = dmd2(mid, "meta", rank=4, gan=True, checkpointed=checkpointed)
        cond = mid.conditioning("meta")
        sizes.append([rehearse(method, p, cond, mid.shape, "cpu") for p in method.updates])
    assert all(less < 0.75 * more for more, less in zip(*sizes, strict=True))


def test_a_view_made_before_follows() -> None:
    """The option may come after a first use of the frozen view."""
    role = full("critic", denoiser(MIDS["dit"], "cpu"))
    assert not role.frozen.backbone.network.is_gradient_checkpointing
    checkpoint_gradients(role)
    assert role.frozen.backbone.network.is_gradient_checkpointing


@pytest.mark.parametrize(("name", "part"), [("sd3", 0.52), ("unet", 0.5)])
def test_the_teacher_in_fp8(name: str, part: float) -> None:
    """A quarter of the bytes of all but sensitive layers, nearly the same answer; roles stay."""
    mid = MIDS[name]
    method = dmd2(mid, "cpu", rank=0, gan=False, checkpointed=False)
    teacher = method.real.denoiser  # type: ignore[attr-defined]
    x_t, t, cond = torch.randn(2, *mid.shape), torch.full((2,), 0.5), mid.conditioning("cpu")
    before = teacher(x_t, t, cond).x0_hat
    critic = method.critic.frozen(x_t, t, cond).x0_hat
    size = sum(p.numel() * p.element_size() for p in teacher.parameters())
    save_memory(MemoryOptions(teacher_fp8=True), method, teacher)
    assert sum(p.numel() * p.element_size() for p in teacher.parameters()) < part * size
    after = teacher(x_t, t, cond).x0_hat
    difference = (after - before).square().mean().sqrt() / before.std()
    assert 0 < difference < 0.1
    assert torch.equal(method.critic.frozen(x_t, t, cond).x0_hat, critic)
    assert {p.dtype for p in method.critic.module.parameters()} == {torch.float32}
    assert teacher(x_t, t, cond).x0_hat.dtype == torch.float32


def test_fp8_is_refused_under_lora_roles() -> None:
    """The cast would replace the weights that the roles share; nothing is done to the teacher."""
    method = dmd2(MIDS["dit"], "cpu", rank=4, gan=False, checkpointed=False)
    teacher = method.real.denoiser  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="LoRA over the teacher's own weights"):
        keep_in_fp8(teacher, method.roles.values())
    hooked = [m for m in teacher.modules() if hasattr(m, "_diffusers_hook")]
    assert not any(isinstance(m._diffusers_hook, HookRegistry) for m in hooked)


needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao"
)


@pytest.mark.slow
@needs_torchao
@pytest.mark.parametrize(
    ("name", "part", "error"), [("sd3", 0.28, 0.003), ("dit", 0.50, 0.01), ("unet", 0.80, 0.003)]
)
def test_the_teacher_in_int8(name: str, part: float, error: float) -> None:
    """A quarter of the bytes where all is linear, nearly the same x0 and gradient; roles stay."""
    mid = MIDS[name]
    method = dmd2(mid, "cpu", rank=0, gan=False, checkpointed=False)
    teacher = method.real.denoiser  # type: ignore[attr-defined]
    x_t, t, cond = torch.randn(2, *mid.shape), torch.full((2,), 0.5), mid.conditioning("cpu")
    x_t.requires_grad_(True)

    def answer() -> tuple[Tensor, Tensor]:
        x0_hat = teacher(x_t, t, cond).x0_hat
        return x0_hat.detach(), torch.autograd.grad(x0_hat.square().sum(), x_t)[0]

    before, critic = answer(), method.critic.frozen(x_t, t, cond).x0_hat
    size = parts_of(method, teacher, FitConfig())[0]
    save_memory(MemoryOptions(teacher_int8=True), method, teacher)
    now = parts_of(method, teacher, FitConfig())[0]
    assert now.weights < part * size.weights
    assert now.parameters == size.parameters
    for old, new in zip(before, answer(), strict=True):
        difference = float((new - old).square().mean().sqrt() / old.std())
        print(f"{name}: {now.weights / size.weights:.3f} of the bytes, {difference:.1e} off")
        assert 0 < difference < error
    assert torch.equal(method.critic.frozen(x_t, t, cond).x0_hat, critic)
    for purpose in method.updates:
        loss = getattr(method, f"{purpose}_loss")
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(Batch(before[0], cond, Draws(0, 1, purpose, (0,)))).value
        torch.autograd.backward(value)
    assert all(p.grad is not None for p in method.generator.trainable().values())


@needs_torchao
def test_int8_is_refused_under_lora_roles() -> None:
    """The base would have no merged form to export; nothing is done to the teacher."""
    method = dmd2(MIDS["dit"], "cpu", rank=4, gan=False, checkpointed=False)
    teacher = method.real.denoiser  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"memory.teacher_int8.*LoRA over the teacher's own"):
        save_memory(MemoryOptions(teacher_int8=True), method, teacher)
    assert not any(hasattr(p, "__tensor_flatten__") for p in teacher.parameters())


@needs_torchao
def test_a_teacher_is_cast_one_way() -> None:
    with pytest.raises(UserError, match="take one"):
        MemoryOptions(teacher_fp8=True, teacher_int8=True)


def test_int8_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence before anything is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao.*stepdistill\[int8\]"):
        MemoryOptions(teacher_int8=True)


@pytest.mark.slow
def test_a_run_with_lora_over_bf16_and_checkpointing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to both exports, which are checked against the trainer; checkpointing
    changes no logged number."""
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
    PIPELINES["sd15"]().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a red fox\na blue car\n")
    flags = [
        *("--teacher", tmp_path / "teacher", "--prompts", tmp_path / "prompts.txt"),
        *("--load.dtype=bfloat16", "--bf16", "--lora.rank=2", "--method.gan_weight=0"),
        *("--method.critic_steps=1", "--method.generator_lr=1e-3", "--export=both"),
        *("--max_steps=3", "--batch_size=8", "--log_every=1"),
    ]
    lines = []
    for checkpointed in ("true", "false"):
        output = tmp_path / checkpointed
        given = ("--output", output, f"--memory.gradient_checkpointing={checkpointed}")
        assert run("train", "dmd2", *flags, *given) == 0
        assert (output / "student" / "model_index.json").exists()
        assert (output / "lora" / "pytorch_lora_weights.safetensors").exists()
        timed = ("images_per_second", "memory_gb")
        logged = [json.loads(x) for x in (output / "metrics.jsonl").read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if k not in timed} for line in logged])
    assert lines[0] == lines[1]
    assert lines[0][-1]["generator/grad_norm"] > 0


def test_networks_that_cannot() -> None:
    """A sentence for one that is not of diffusers, and for one that does not checkpoint."""

    class Plain(Backbone):
        def forward(self, x: Tensor, timestep: Tensor, cond: object) -> Tensor:
            return x

    made = denoiser(MIDS["dit"], "cpu")
    other = Denoiser(Plain(MLP(2, 8)), made.schedule, made.parametrization)
    with pytest.raises(UserError, match="MLP is none: leave them out"):
        checkpoint_gradients(Role("critic", other))
    made.backbone.network._supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="DiTTransformer2DModel does not support it"):
        checkpoint_gradients(Role("critic", made))
