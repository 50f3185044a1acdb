"""What starts where another run has ended: critics, heads, LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from run_tiny import same
from tiny import tiny_teacher_folder
from torch import Tensor

from stepdistill import checkpoint
from stepdistill.distil import build_method, read_settings, read_teacher
from stepdistill.errors import UserError
from stepdistill.initial import start_critic_from
from stepdistill.roles import LoRAOptions
from stepdistill.runs import RunFolder

LORA = ["--lora.rank=2", "--lora.targets=[time_emb_proj]"]


pytestmark = pytest.mark.usefixtures("quick_runs")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2; the sentence."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def train(name: str, teacher: Path, output: Path, *more: object) -> Path:
    given = ["--teacher", teacher, "--output", output, "--data=digits", "--batch_size=8"]
    assert run("train", name, *given, "--max_steps=2", *more) == 0
    return output


def method_of(name: str, teacher: Path, *more: str) -> tuple[Any, LoRAOptions]:
    settings = read_settings(name, ["--teacher", str(teacher), "--output=x", *more])
    return build_method(name, settings, read_teacher(settings)), settings.get(LoRAOptions)


def trained(run: Path, place: str) -> dict[str, Tensor]:
    newest = checkpoint.complete(RunFolder(run).checkpoints)[-1]
    return checkpoint.weights_under(newest, place)


def live(method: Any, role: str) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in method.roles[role].trainable().items()}


@pytest.mark.slow
def test_a_critic_and_its_head_start_from_a_run(teacher: Path, tmp_path: Path) -> None:
    """From the newest checkpoint, whether or not the run is finished; the head where there is one.

    A run that names no such critic, or another network's, is refused by name.
    """
    rates = ["--method.critic_lr=1e-3"]
    with_gan = train("dmd2", teacher, tmp_path / "gan", *rates)
    without = train("dmd2", teacher, tmp_path / "plain", "--method.gan_weight=0", *rates)
    method, lora = method_of("fdiv", teacher)
    assert not same(live(method, "critic"), trained(with_gan, "weights/critic"))
    assert start_critic_from(with_gan, method, lora) == ["critic", "head"]
    for role in ("critic", "head"):
        assert same(live(method, role), trained(with_gan, f"weights/{role}"))
    head = {k: v.clone() for k, v in live(method, "head").items()}
    assert start_critic_from(without, method, lora) == ["critic"]
    assert same(live(method, "critic"), trained(without, "weights/critic"))
    assert same(live(method, "head"), head)
    plain, lora = method_of("dmd2", teacher, "--method.gan_weight=0")
    assert start_critic_from(with_gan, plain, lora) == ["critic"]
    ect = train("ect", teacher, tmp_path / "ect")
    wide = tiny_teacher_folder(tmp_path / "wide", block_out_channels=(8, 16))
    for path, other, words in (
        (tmp_path / "nowhere", method, "is no run with a checkpoint"),
        (ect, method, "is a run of ect, which trains no critic"),
        (with_gan, method_of("ect", teacher)[0], "for a method with a critic"),
        (with_gan, method_of("dmd2", wide)[0], "the critic of .*gan is another network"),
        (with_gan, method_of("vsd", teacher, "--method.critic_rank=0")[0], ""),
    ):
        if words:
            with pytest.raises(UserError, match=words):
                start_critic_from(path, other, lora)
        else:
            assert start_critic_from(path, other, lora) == ["critic"]


@pytest.mark.slow
def test_init_critic_is_an_option_and_not_with_a_path(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic that learns nothing any more has the weights of the run it starts from."""
    first = train("dmd2", teacher, tmp_path / "first", "--method.critic_lr=1e-3")
    still = ["--method.critic_lr=1e-30", "--weight_decay=0", "--init_critic", first]
    second = train("dmd2", teacher, tmp_path / "second", *still)
    for role in ("critic", "head"):
        assert same(trained(second, f"weights/{role}"), trained(first, f"weights/{role}"))
    given = ["--teacher", teacher, "--output", tmp_path / "x", "--data=digits"]
    said = refused(capsys, "train", "disback", *given, "--init_critic", first)
    assert "both say where the critic starts" in said
    said = refused(capsys, "train", "dmd2", *given, "--init_critic", first, *LORA)
    assert "learns all weights, and this one a LoRA of rank 2" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_lora_starts_from_a_run_of_the_same_lora(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exported adapters, and its critic's; another alpha would use them otherwise."""
    gan = ["--method.gan_weight=0", *LORA]
    rates = ["--method.generator_lr=1e-2", "--method.critic_steps=1", "--method.critic_lr=1e-2"]
    first = train("dmd2", teacher, tmp_path / "first", *gan, *rates)
    still = ["--method.generator_lr=1e-30", "--method.critic_lr=1e-30", "--weight_decay=0"]
    start = ["--init", first, "--init_critic", first]
    second = train("dmd2", teacher, tmp_path / "second", *gan, *still, *start)
    found = trained(second, "weights/generator")
    assert any(value.abs().max() > 0 for name, value in found.items() if "lora_B" in name)
    assert same(found, trained(first, "ema"))
    assert same(trained(second, "weights/critic"), trained(first, "weights/critic"))
    given = ["--teacher", teacher, "--output", tmp_path / "x", "--data=digits", *gan]
    for more, words in (
        (["--init", first, "--lora.alpha=3"], "the generator of"),
        (["--init_critic", first, "--lora.alpha=3"], "the critic of"),
        (
            ["--init", first, "--lora.rank=3"],
            "a LoRA of rank 2 and alpha 8, and this one a LoRA of",
        ),
        (["--init", first, "--lora.targets=[conv1]"], "is another network than this run's"),
        (["--init", tmp_path], "is no run with a checkpoint"),
    ):
        assert words in refused(capsys, "train", "dmd2", *given, *more)
    assert torch.isfinite(torch.cat([v.flatten() for v in found.values()])).all()
