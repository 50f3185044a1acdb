"""What people do with a student afterwards: stack a style LoRA of the teacher's, fine-tune it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here
from diffusers import DiffusionPipeline
from tiny_pipelines import PIPELINES
from torch import Tensor

from stepdistill.denoisers import Denoiser
from stepdistill.draws import Draws
from stepdistill.export import export, export_lora
from stepdistill.lora_files import save_diffusers
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.plans import StepPlan
from stepdistill.roles import LoRAOptions, Role, full, merged, trainable_role
from stepdistill.sampling import NoiseStreams, sample_student
from stepdistill.teachers import LoadOptions, Teacher, load_teacher

SEEDS = range(2)


@pytest.fixture(params=["sd15", pytest.param("flux", marks=pytest.mark.slow)])
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Teacher:
    """Loaded from a folder, so that a LoRA can name it."""
    PIPELINES[request.param]().save_pretrained(tmp_path / "teacher")
    return load_teacher(tmp_path / "teacher", options=LoadOptions(height=16, width=16))


def random_lora(teacher: Teacher, base: Denoiser, seed: int) -> Role:
    """Adapters of rank 2 over ``base``, as loud as they are after a training."""
    role = trainable_role("style", base, LoRAOptions(rank=2), teacher.lora_targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.trainable().values():
            parameter.normal_(std=0.1, generator=generator)
    return role


def own(generator: Denoiser, teacher: Teacher) -> Tensor:
    """The trainer's x0 in one step, as the stock pipeline returns it."""
    cond = teacher.encode(teacher.examples(2))
    shape, streams = teacher.sample_shape, NoiseStreams(SEEDS)
    x0 = sample_student(generator, StepPlan(), cond, shape, streams)
    return teacher.family.stock_output(teacher, x0)


def stock(pipeline: Any, teacher: Teacher) -> Tensor:
    """The same of a stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    call = teacher.family.call(teacher, teacher.examples(2))
    unguided = teacher.family.guidance_call(teacher.pipeline, 1.0)
    seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    given = {**call, **unguided, "generator": seeds, "output_type": "latent"}
    return pipeline(num_inference_steps=1, return_dict=False, **given)[0]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.slow
def test_a_style_lora_stacks_on_a_student(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA trained on the teacher, loaded onto the student's folder: the network of the student's
    weights plus the style's."""
    check_exports_here(monkeypatch)
    component = teacher.family.component  # type: ignore[attr-defined]
    style = random_lora(teacher, teacher.denoiser, seed=1)
    network = style.module.backbone.network
    save_diffusers(teacher.pipeline, component, network, tmp_path / "style.safetensors")
    student = full("generator", teacher.student()).frozen
    assert isinstance(student, Denoiser)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.05)
    export(student, teacher, StepPlan(), tmp_path / "student")

    styled = merged(random_lora(teacher, copy.deepcopy(student), seed=1)).eval()
    assert isinstance(styled, Denoiser)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    plain = stock(pipeline, teacher)
    assert relative(plain, own(student, teacher)) < 1e-4
    pipeline.load_lora_weights(tmp_path, weight_name="style.safetensors")
    assert relative(stock(pipeline, teacher), own(styled, teacher)) < 1e-4
    assert relative(stock(pipeline, teacher), plain) > 0.01


@pytest.mark.slow
def test_a_style_lora_stacks_on_a_student_lora(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both over the teacher, by set_adapters with a weight each."""
    check_exports_here(monkeypatch)
    component = teacher.family.component  # type: ignore[attr-defined]
    style = random_lora(teacher, teacher.denoiser, seed=1)
    network = style.module.backbone.network
    save_diffusers(teacher.pipeline, component, network, tmp_path / "style.safetensors")
    role = random_lora(teacher, teacher.student(), seed=2)
    assert isinstance(role.frozen, Denoiser)
    export_lora(role.frozen, teacher, StepPlan(), tmp_path / "lora")

    student = merged(role)
    assert isinstance(student, Denoiser)
    half = random_lora(teacher, student, seed=1)
    with torch.no_grad():
        for name, parameter in half.trainable().items():
            if "lora_B" in name:
                parameter.mul_(0.5)
    both = merged(half).eval()
    assert isinstance(both, Denoiser)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "teacher")
    pipeline.scheduler = teacher.family.few_step_scheduler(  # type: ignore[attr-defined]
        teacher.denoiser, StepPlan()
    )
    pipeline.load_lora_weights(tmp_path / "lora", adapter_name="fast")
    pipeline.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    pipeline.set_adapters(["fast", "style"], [1.0, 0.5])
    assert relative(stock(pipeline, teacher), own(both, teacher)) < 1e-4


@pytest.mark.slow
def test_a_student_can_be_a_teacher(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder loads as one, denoises as the student did, and takes a DMD2 update."""
    check_exports_here(monkeypatch)
    export(teacher.student(), teacher, StepPlan.uniform(2), tmp_path / "student")
    again = load_teacher(tmp_path / "student", options=LoadOptions(height=16, width=16))
    expected = own(teacher.student(), teacher)
    assert relative(own(again.student(), again), expected) < 1e-4
    method = DMD2.from_teacher(again, StepPlan.uniform(2), DMD2Config(gan_weight=0.0))
    with torch.no_grad():
        for parameter in method.critic.trainable().values():
            parameter.mul_(1.02)
    batch = Batch(None, again.encode(again.examples(2)), Draws(0, 1, "generator", range(1)))
    loss = method.generator_loss(batch).value
    gradients = torch.autograd.grad(loss, list(method.generator.trainable().values()))
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
