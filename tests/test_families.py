"""Each family against the stock pipelines, on tiny random models with real encoders.

The teacher, sampled with our solver, equals the stock pipeline; the stock pipeline on an exported
student gives the trainer's x0.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import CALLS, PIPELINES
from torch import Tensor

from stepdistill import families
from stepdistill.backbones import schedulers
from stepdistill.backbones.latent import LatentFamily
from stepdistill.denoisers import Denoiser
from stepdistill.draws import Draws
from stepdistill.errors import StepDistillError, UserError
from stepdistill.export import export, export_lora
from stepdistill.lora_files import KOHYA
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.model_cards import loading_code
from stepdistill.plans import StepPlan, ode_move
from stepdistill.roles import LoRAOptions, full, trainable_role
from stepdistill.sampling import NoiseStreams
from stepdistill.schedules import VPSchedule
from stepdistill.selfcheck import check
from stepdistill.solvers import ddim_step, sample
from stepdistill.teachers import LoadOptions, Teacher

SEEDS = range(2)
MAX_TOKENS = {"qwen-image": 96, "z-image": 64}
NAMES = [name for name in PIPELINES if name not in ("ddpm", "ltx")]


@pytest.fixture(scope="module", params=NAMES)
def teacher(request: pytest.FixtureRequest) -> Teacher:
    """The tiny model of a family."""
    return load(request.param)


def load(name: str) -> Teacher:
    pipeline = PIPELINES[name]()
    pipeline.set_progress_bar_config(disable=True)
    family = families.of_pipeline(type(pipeline).__name__, name)
    assert isinstance(family, LatentFamily)
    size = CALLS[name]
    options = LoadOptions(
        height=size.get("height"),
        width=size.get("width"),
        frames=size.get("num_frames"),
        max_tokens=MAX_TOKENS.get(name),
    )
    return family.teacher(pipeline, name, options)


def stock(teacher: Teacher, steps: int, guidance_scale: float, **components: Any) -> Tensor:
    """What the stock pipeline returns for two prompts and seeds."""
    pipeline, family = copy.copy(teacher.pipeline), teacher.family
    pipeline.register_modules(**components)
    torch.manual_seed(0)
    call = {**family.call(teacher, teacher.examples(2)), "output_type": family.output_type}
    found = pipeline(
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        return_dict=False,
        **{**call, **family.guidance_call(teacher, guidance_scale)},
    )[0]
    return torch.as_tensor(found)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in standard deviations of what is expected."""
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_our_solver_equals_the_stock_pipeline(teacher: Teacher, guidance_scale: float) -> None:
    """DDIM at the scheduler's own timesteps, 3 steps, with and without guidance."""
    schedule, family = teacher.denoiser.schedule, teacher.family
    assert isinstance(family, LatentFamily)
    if isinstance(schedule, VPSchedule):
        betas = 1 - schedule.knots[1:] / schedule.knots[:-1]
        names = {kind: name for name, kind in schedulers.PREDICTIONS.items()}
        scheduler = DDIMScheduler(
            trained_betas=betas.tolist(),
            prediction_type=names[type(teacher.denoiser.parametrization)],
            timestep_spacing="trailing",
            clip_sample=False,
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=schedule.shift)
    expected = stock(teacher, 4, guidance_scale, scheduler=scheduler)
    family.set_timesteps(teacher, scheduler, 4)
    times = schedule.time_of_timestep(scheduler.timesteps).tolist()
    z = NoiseStreams(SEEDS).normal(teacher.sample_shape)
    cond = teacher.encode(teacher.examples(2))
    x0 = sample(teacher.guided(guidance_scale), schedule, z, times, cond, ddim_step)
    worst = relative(family.stock_output(teacher, x0), expected)
    print("WORST", teacher.name, guidance_scale, f"{worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_teachers_own_scheduler(teacher: Teacher, guidance_scale: float) -> None:
    family = teacher.family
    assert isinstance(family, LatentFamily)
    expected = stock(teacher, 3, guidance_scale)
    scheduler = copy.deepcopy(teacher.pipeline.scheduler)
    family.set_timesteps(teacher, scheduler, 3)
    z = NoiseStreams(SEEDS).normal(teacher.sample_shape)
    cond = teacher.encode(teacher.examples(2))
    x0 = schedulers.walk(teacher.guided(guidance_scale), teacher.denoiser, scheduler, z, cond)
    worst = relative(family.stock_output(teacher, x0), expected)
    print("WORST", teacher.name, guidance_scale, f"{worst:.1e}")
    assert worst < 1e-4


def plans(teacher: Teacher) -> dict[str, StepPlan]:
    """One step, four, and where the schedule has training steps one from step 399."""
    found = {"1": StepPlan.uniform(1), "4": StepPlan.uniform(4)}
    if isinstance(teacher.denoiser.schedule, VPSchedule):
        assert teacher.denoiser.schedule.timestep(times_of(found["4"])).tolist() == [
            *(999, 749, 499, 249)
        ]
        found["1 from 399"] = StepPlan((0.4,))
    else:
        found["4 by the ODE"] = StepPlan.uniform(4, ode_move)
    return found


def times_of(plan: StepPlan) -> Tensor:
    return torch.tensor(plan.times, dtype=torch.float64)


def test_the_exported_student_gives_the_trainers_x0(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are not the teacher's, every plan, the arguments that the model card shows."""
    check_exports_here(monkeypatch)
    generator = full("generator", teacher.student()).frozen
    assert isinstance(generator, Denoiser)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.1)
    for name, plan in plans(teacher).items():
        worst = export(generator, teacher, plan, tmp_path / "student")
        print("WORST", teacher.name, name, f"{worst:.1e}")
        assert worst < 1e-4
        code, call = loading_code(teacher.options), teacher.family.call
        with pytest.raises(StepDistillError, match="other samples than the trainer"):
            check(teacher.student(), teacher, plan, tmp_path / "student", code, call)


def test_a_dmd2_iteration_trains_every_tensor(teacher: Teacher) -> None:
    """Both losses, with the GAN where the network has a tap: a finite gradient that is not zero in
    every trainable tensor, none elsewhere, and the teacher's weights as they were."""
    before = {k: v.clone() for k, v in teacher.denoiser.state_dict().items()}
    gan = 1e-2 if teacher.denoiser.backbone.taps else 0.0
    config = DMD2Config(gan_weight=gan, through_all_steps=True, critic_steps=1)
    method = DMD2.from_teacher(teacher, StepPlan.uniform(2), config)
    with torch.no_grad():  # a critic that is the teacher gives no gradient
        for tensor in method.critic.trainable().values():
            tensor.mul_(1.02)
    cond = teacher.encode(teacher.examples(8))
    x0 = torch.randn(8, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    for purpose, roles in method.updates.items():
        batch = Batch(x0, cond, Draws(0, 1, purpose, range(1)))
        loss = getattr(method, f"{purpose}_loss")(batch)
        assert loss.value.isfinite()
        loss.value.backward()
        for name in roles:
            trained = method.roles[name].trainable()
            assert [k for k, p in trained.items() if p.grad is None] == []
            assert [k for k, p in trained.items() if not p.grad.isfinite().all()] == []
            assert [k for k, p in trained.items() if not p.grad.any()] == []
            for parameter in trained.values():
                parameter.grad = None
        for role in method.roles.values():
            assert all(p.grad is None for p in role.trainable().values())
    after = teacher.denoiser.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


WITHOUT_LORA = ("pixart-alpha", "pixart-sigma", "dit")  # their stock pipelines load none


def test_the_exported_lora_loads_fuses_and_equals_the_trainers_x0(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters over the teacher's own weights, through load_lora_weights, as the card's code does;
    fused they give the same, and the teacher is as it was."""
    check_exports_here(monkeypatch)
    teacher.pipeline.save_pretrained(tmp_path / "teacher")
    teacher = replace(teacher, source=str(tmp_path / "teacher"))
    options = LoRAOptions(rank=2, alpha=3.0)
    role = trainable_role("generator", teacher.student(), options, teacher.lora_targets)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in role.trainable().values():
            parameter.normal_(std=0.2, generator=generator)
    assert isinstance(role.frozen, Denoiser)
    plan, folder = StepPlan.uniform(4), tmp_path / "lora"
    if teacher.name in WITHOUT_LORA:
        with pytest.raises(UserError, match="cannot load LoRA weights: export the student whole"):
            export_lora(role.frozen, teacher, plan, folder)
        return
    worst = export_lora(role.frozen, teacher, plan, folder)
    print("WORST", teacher.name, f"{worst:.1e}")
    assert worst < 1e-4

    pipeline = run_card(folder, monkeypatch)["pipeline"]
    call = {**teacher.family.call(teacher, teacher.examples(2)), "output_type": "latent"}
    unguided = {**call, **teacher.family.guidance_call(teacher, 1.0)}

    def sampled() -> Tensor:
        torch.manual_seed(0)
        seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        given = copy.deepcopy(unguided)
        return pipeline(num_inference_steps=4, generator=seeds, return_dict=False, **given)[0]

    loaded = sampled()
    pipeline.fuse_lora(components=list(pipeline.get_list_adapters()))
    pipeline.unload_lora_weights()
    assert relative(sampled(), loaded) < 1e-4
    fused = sampled()
    pipeline = run_card(folder, monkeypatch)["pipeline"]
    pipeline.unload_lora_weights()
    assert relative(sampled(), fused) > 0.01
    if (folder / KOHYA).exists():
        pipeline.load_lora_weights(folder, weight_name=KOHYA)
        assert relative(sampled(), loaded) < 1e-4
    assert (folder / KOHYA).exists() == (teacher.name in ("sd15", "sd21", "sdxl"))


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the model card's code makes, up to its call."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loading = code.split("samples = ")[0].split("from PIL")[0]
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(loading, names)
    names["pipeline"].set_progress_bar_config(disable=True)
    return names
