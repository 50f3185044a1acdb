"""Each family against the stock pipelines, on tiny random models with real encoders.

The teacher, sampled with our solver, equals the stock pipeline; the stock pipeline on an exported
student gives the trainer's x0.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here
from conftest import Reached
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from tiny import tiny_unet
from tiny_pipelines import CALLS, PIPELINES, image, some_slow, video
from tiny_pipelines import schedulers as published
from torch import Tensor
from torch.nn import Parameter

from stepdistill import families
from stepdistill.backbones import pixel, schedulers
from stepdistill.backbones.latent import LatentFamily
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Denoiser
from stepdistill.draws import Draws
from stepdistill.errors import StepDistillError, UserError
from stepdistill.export import export, export_lora
from stepdistill.lora_files import KOHYA
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.model_cards import loading_code
from stepdistill.plans import StepPlan, ode_move, teacher_times
from stepdistill.roles import FULL, LoRAOptions, full, trainable_role
from stepdistill.sampling import NoiseStreams
from stepdistill.schedules import EDMSchedule, VPSchedule
from stepdistill.selfcheck import check
from stepdistill.solvers import ddim_step, sample
from stepdistill.teachers import LoadOptions, Teacher

SEEDS = range(2)
MAX_TOKENS = {"qwen-image": 96, "z-image": 64}
# published variants: sizes as conditions, no guidance embedded, rotary positions
VARIANTS: dict[str, tuple[str, Callable[[], DiffusionPipeline]]] = {
    "pixart-1024": ("pixart-alpha", partial(image.pixart_alpha, additional_conditions=True)),
    "flux-schnell": ("flux", partial(image.flux, guidance_embeds=False)),
    "cogvideox-5b": ("cogvideox", partial(video.cogvideox, rotary=True)),
}
# the same networks with another prediction or schedule
TWINS: dict[str, tuple[str, Callable[[], DiffusionPipeline]]] = {
    "ddpm-v": ("ddpm", lambda: image.ddpm(scheduler=published.ddpm_v_scheduler())),
    "sd21-v": ("sd21", lambda: image.sd21(scheduler=published.sd21_v_scheduler())),
    "sd21-eps": ("sd21", lambda: image.sd21(scheduler=published.sd15_scheduler())),
    "sd21-euler": ("sd21", lambda: image.sd21(scheduler=published.zero_snr_euler_scheduler())),
    "sdxl-v": ("sdxl", lambda: image.sdxl(scheduler=published.sdxl_scheduler("v_prediction"))),
    "sdxl-zero-snr": ("sdxl", lambda: image.sdxl(scheduler=published.zero_snr_euler_scheduler())),
}
NAMES = [*(name for name in PIPELINES if name != "ltx"), *VARIANTS]
UNGUIDED = ("ddpm", "ddpm-v", "flux-schnell")
sampled = pytest.mark.parametrize("teacher", some_slow([*NAMES, *TWINS]), indirect=True)


@pytest.fixture(scope="module", params=some_slow([*NAMES, "edm"]))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    """The tiny model of a family."""
    return edm() if request.param == "edm" else load(request.param)


def edm() -> Teacher:
    """The pixel family, whose students test_export proves."""
    scheduler = CMStochasticIterativeScheduler(sigma_data=0.75, clip_denoised=False)
    return pixel.teacher("edm", ConsistencyModelPipeline(tiny_unet(), scheduler), null_class=10)


def load(name: str) -> Teacher:
    alike, build = (VARIANTS | TWINS).get(name, (name, PIPELINES.get(name)))
    assert build is not None
    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    family = families.of_pipeline(type(pipeline).__name__, name)
    assert isinstance(family, LatentFamily)
    size = CALLS[alike]
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
        **{**call, **family.guidance_call(teacher.pipeline, guidance_scale)},
    )[0]
    return torch.as_tensor(found)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in standard deviations of what is expected."""
    return float((found - expected).abs().max() / expected.std())


@sampled
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_our_solver_equals_the_stock_pipeline(
    teacher: Teacher, guidance_scale: float, reached: Reached
) -> None:
    """DDIM at the scheduler's own timesteps, 3 steps, with and without guidance."""
    schedule, family = teacher.denoiser.schedule, teacher.family
    assert isinstance(family, LatentFamily)
    if guidance_scale != 1 and teacher.name in UNGUIDED:
        pytest.skip("has no null conditioning")
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
    reached(teacher.family.card.name, "teacher", worst)
    assert worst < 1e-4


@sampled
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_teachers_own_scheduler(
    teacher: Teacher, guidance_scale: float, reached: Reached
) -> None:
    """The scheduler that the model is published with (PNDM, DPM++, UniPC, DDPM, ...), 3 steps."""
    family = teacher.family
    assert isinstance(family, LatentFamily)
    if guidance_scale != 1 and teacher.name in UNGUIDED:
        pytest.skip("has no null conditioning")
    expected = stock(teacher, 3, guidance_scale)
    scheduler = copy.deepcopy(teacher.pipeline.scheduler)
    family.set_timesteps(teacher, scheduler, 3)
    streams = NoiseStreams(SEEDS)
    z = streams.normal(teacher.sample_shape)
    cond, denoiser = teacher.encode(teacher.examples(2)), teacher.guided(guidance_scale)
    x0 = schedulers.walk(denoiser, teacher.denoiser, scheduler, z, cond, streams.generators)
    worst = relative(family.stock_output(teacher, x0), expected)
    reached(teacher.family.card.name, "teacher", worst)
    assert worst < 1e-4


def test_an_edm_teacher_equals_edm_euler(reached: Reached) -> None:
    """Its stock pipeline samples students alone. By EDM's ODE diffusers' EDMEulerScheduler samples
    its network, in 4 steps: it gives ln(sigma)/4, and the network is fed 1000 times that."""
    teacher = edm()
    config = teacher.pipeline.scheduler.config
    names = ("sigma_min", "sigma_max", "sigma_data", "rho")
    scheduler = EDMEulerScheduler(**{name: config[name] for name in names})
    scheduler.set_timesteps(4)
    cond = teacher.encode(teacher.examples(2))
    z = config.sigma_max * NoiseStreams(SEEDS).normal(teacher.sample_shape)
    x0 = sample(teacher.denoiser, teacher.denoiser.schedule, z, teacher_times(4), cond, ddim_step)
    x_t = z
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, timestep)
            output = teacher.pipeline.unet(scaled, 1000 * timestep, cond["class_labels"]).sample
            x_t = scheduler.step(output, timestep, x_t, return_dict=False)[0]
    worst = relative(x0, x_t)
    reached(teacher.family.card.name, "teacher", worst)
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


@sampled
def test_the_exported_student_gives_the_trainers_x0(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Reached
) -> None:
    """Weights that are not the teacher's, every plan, the arguments that the model card shows."""
    check_exports_here(monkeypatch)
    generator = full("generator", teacher.student()).frozen
    assert isinstance(generator, Denoiser)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.1)
    for plan in plans(teacher).values():
        worst = export(generator, teacher, plan, tmp_path / "student")
        reached(teacher.family.card.name, "student", worst)
        assert worst < 1e-4
        code, call = loading_code(teacher.options, tmp_path / "student"), teacher.family.call
        with pytest.raises(StepDistillError, match="other samples than the trainer"):
            check(teacher.student(), teacher, plan, tmp_path / "student", code, call)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # nothing that diffusers calls outdated
            DiffusionPipeline.from_pretrained(tmp_path / "student")


@pytest.mark.parametrize("lora", [FULL, LoRAOptions(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("through_all_steps", [True, False], ids=["all steps", "published"])
def test_a_dmd2_iteration_trains_every_tensor(
    teacher: Teacher, through_all_steps: bool, lora: LoRAOptions
) -> None:
    """Both losses, with the GAN where the network has a tap: a finite gradient that is not zero in
    every trainable tensor, and none elsewhere; a step of these leaves all others bit-identical.

    Of two iterations together: as published each trains one step of two, and Wan 2.2 has a network
    for each.
    """
    before = copied(teacher.denoiser.state_dict())
    gan = 1e-2 if teacher.denoiser.backbone.taps else 0.0
    config = DMD2Config(gan_weight=gan, through_all_steps=through_all_steps, critic_steps=1)
    method = DMD2.from_teacher(teacher, StepPlan.uniform(2), config, lora)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a critic that is the teacher gives no gradient, nor new adapters
        for role in (method.critic, method.generator):
            for tensor in role.trainable().values():
                tensor.add_(0.02 * torch.randn(tensor.shape, generator=noise))
    cond = teacher.encode(teacher.examples(4))
    x0 = torch.randn(4, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    for purpose, roles in method.updates.items():
        for iteration in (5, 6):  # their generator updates train the first and the second step
            batch = Batch(x0, cond, Draws(0, iteration, purpose, range(1)))
            loss = getattr(method, f"{purpose}_loss")(batch)
            assert loss.value.isfinite()
            loss.value.backward()
        trained = trainable(method, roles)
        assert [k for k, p in trained.items() if p.grad is None] == []
        assert [k for k, p in trained.items() if not p.grad.isfinite().all()] == []
        assert [k for k, p in trained.items() if not p.grad.any()] == []
        resting = trainable(method, method.roles.keys() - set(roles))
        held = copied(resting)
        assert all(p.grad is None for p in (*resting.values(), *teacher.denoiser.parameters()))
        torch.optim.SGD(trained.values(), lr=1.0).step()
        assert all(torch.equal(held[k], p) for k, p in resting.items())
        for parameter in trained.values():
            parameter.grad = None
    after = teacher.denoiser.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def trainable(method: DMD2, roles: Iterable[str]) -> dict[str, Parameter]:
    """The parameters that learn in some roles of a method."""
    return {f"{r}.{k}": p for r in roles for k, p in method.roles[r].trainable().items()}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


WITHOUT_LORA = (
    "pixart-alpha",
    "pixart-1024",
    "pixart-sigma",
    "dit",
    "ddpm",
    "edm",
)  # their stock pipelines load none


@pytest.mark.slow
def test_the_exported_lora_loads_fuses_and_equals_the_trainers_x0(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Reached
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
    reached(teacher.family.card.name, "lora", worst)
    assert worst < 1e-4

    pipeline = run_card(folder, monkeypatch)["pipeline"]
    call = {**teacher.family.call(teacher, teacher.examples(2)), "output_type": "latent"}
    unguided = {**call, **teacher.family.guidance_call(teacher.pipeline, 1.0)}

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


def noisy(teacher: Teacher, t: Tensor) -> Tensor:
    """Two fixed samples, noised to the times ``t``."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2, *teacher.sample_shape, generator=generator)
    return teacher.denoiser.schedule.add_noise(x0, t, eps)


def test_prompts_longer_than_the_pipeline_takes_are_refused(teacher: Teacher) -> None:
    """At once, not by the exported student; and any length where the pipeline's call has none."""
    family, most = teacher.family, teacher.family.max_tokens
    called = inspect.signature(type(teacher.pipeline).__call__).parameters
    assert (most is None) == ("max_sequence_length" not in called)
    if most is not None:
        family.check_tokens(LoadOptions(max_tokens=most))
    says = "leave max_tokens out" if most is None else f"at most {most} tokens"
    if isinstance(family, LatentFamily):
        with pytest.raises(UserError, match=says):
            family.teacher(teacher.pipeline, "", LoadOptions(max_tokens=1 + (most or 0)))


def x0_and_gradient(denoiser: Denoiser, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """x0_hat of fixed noisy samples, and the gradient of its mean square in all weights."""
    cond, t = teacher.encode(teacher.examples(2)), torch.tensor([0.9, 0.3])
    x0_hat = denoiser(noisy(teacher, t), t, cond).x0_hat
    learning = [p for p in denoiser.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(x0_hat.square().mean(), learning, allow_unused=True)
    return x0_hat.detach(), torch.cat([g.float().flatten() for g in gradients if g is not None])


def rms(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((found - expected).float().norm() / expected.float().norm())


def test_gradient_checkpointing_changes_nothing(teacher: Teacher) -> None:
    """x0_hat and every gradient, to 1e-6; of the network's blocks some are really run twice."""
    plain = full("generator", teacher.student()).module.eval()
    again = full("generator", teacher.student()).module.train()  # in eval mode nothing is saved
    networks = [m for m in again.modules() if hasattr(m, "enable_gradient_checkpointing")]
    for network in networks:
        network.enable_gradient_checkpointing()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for module in again.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(count)
    x0_hat, gradient = x0_and_gradient(plain, teacher)
    with torch.no_grad():
        again(
            torch.zeros(2, *teacher.sample_shape),
            torch.ones(2),
            teacher.encode(teacher.examples(2)),
        )
    once, calls = calls, 0
    x0_again, gradient_again = x0_and_gradient(again, teacher)
    assert rms(x0_again, x0_hat) < 1e-6
    assert rms(gradient_again, gradient) < 1e-5
    assert calls > once


def test_half_precision_is_near(teacher: Teacher, reached: Reached) -> None:
    """bf16 weights on float32 noise: x0_hat in float32, 5 % off at most, but not the same.

    Times and guidance are numbers that bf16 holds: Flux rounds 1000 t and 1000 times its guidance.
    """
    half = copy.deepcopy(teacher.denoiser)
    half.backbone.network.to(torch.bfloat16)
    cond = teacher.encode(teacher.examples(2))
    if "guidance" in cond:
        cond = cond.replace(Conditioning({"guidance": torch.full((2,), 4.0)}))
    schedule = teacher.denoiser.schedule
    native = [2.0, 0.5] if isinstance(schedule, EDMSchedule) else [500.0, 250.0]
    t = schedule.time_of_timestep(torch.tensor(native))
    x_t = noisy(teacher, t)
    expected, found = teacher.denoiser(x_t, t, cond).x0_hat, half(x_t, t, cond).x0_hat
    assert found.dtype == torch.float32
    reached(teacher.family.card.name, "bf16", rms(found, expected))
    assert 0 < rms(found, expected) < 0.05


def test_attention_backends_agree(teacher: Teacher) -> None:
    """Torch's plain attention and its fused kernel give the same x0_hat to 1e-5."""
    other = copy.deepcopy(teacher.denoiser)
    for module in other.modules():
        if isinstance(module, ModelMixin):
            module.set_attention_backend("_native_math")
    cond, t = teacher.encode(teacher.examples(2)), torch.tensor([0.9, 0.3])
    x_t = noisy(teacher, t)
    expected, found = teacher.denoiser(x_t, t, cond).x0_hat, other(x_t, t, cond).x0_hat
    assert rms(found, expected) < 1e-5


def test_channels_last_agrees(teacher: Teacher) -> None:
    """Convolutional weights in another memory order give the same x0_hat to 1e-5."""
    other = copy.deepcopy(teacher.denoiser)
    if not any(isinstance(m, torch.nn.Conv2d) for m in other.modules()):
        pytest.skip("has no two-dimensional convolution")
    for module in other.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    cond, t = teacher.encode(teacher.examples(2)), torch.tensor([0.9, 0.3])
    x_t = noisy(teacher, t)
    expected = teacher.denoiser(x_t, t, cond).x0_hat
    found = other(x_t, t, cond).x0_hat
    assert rms(found, expected) < 1e-5
