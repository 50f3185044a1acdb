"""An exported folder is the trainer's student: stock diffusers gives the same pixels."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import check_exports_here
from conftest import Reached
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
from safetensors import SafetensorError
from tiny import tiny_teacher, tiny_teacher_folder
from torch import Tensor

from stepdistill.backbones.pixel import EDMPixels
from stepdistill.denoisers import Denoiser
from stepdistill.distil import exportable
from stepdistill.errors import StepDistillError, UserError
from stepdistill.export import export
from stepdistill.plans import StepPlan, ode_move
from stepdistill.roles import LoRAOptions, trainable_role
from stepdistill.sampling import NoiseStreams, sample_student
from stepdistill.schedules import EDMSchedule
from stepdistill.teachers import Teacher, load_teacher

SEEDS = (7, 3, 11, 2**40)
LABELS = [0, 9, 4, 4]
TOLERANCE = 1e-5  # of pixels in [0, 1]
CARD = {"method": "none", "teacher": "tiny"}
selfcheck = importlib.import_module("stepdistill.selfcheck")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check in this process."""
    check_exports_here(monkeypatch)


def loud(teacher: Teacher) -> Denoiser:
    """The teacher's student with an output layer that drives x0 far outside of [-1, 1]."""
    generator = teacher.student()
    with torch.no_grad():
        for parameter in generator.backbone.network.conv_out.parameters():
            parameter.mul_(20)
    return generator


def to_pixels(x0: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (x0 / 2 + 0.5).clamp(0, 1)


def stock(folder: Path, steps: int, seeds: Sequence[int], labels: list[int] | None) -> Tensor:
    """Pixels (N, C, H, W) in [0, 1] of the folder's own pipeline."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is ConsistencyModelPipeline
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=len(seeds),
        num_inference_steps=steps,
        class_labels=labels,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def own(generator: Denoiser, teacher: Teacher, plan: StepPlan, labels: list[int] | None) -> Tensor:
    """x0 of the trainer's own sampler, same seeds."""
    cond = teacher.encode([None] * len(SEEDS) if labels is None else labels)
    return sample_student(generator, plan, cond, teacher.sample_shape, NoiseStreams(SEEDS))


PLANS = {
    "1": StepPlan.uniform(1),
    "2": StepPlan.uniform(2),
    "4": StepPlan.uniform(4),
    "4 of rho 4": StepPlan.karras(4, EDMSchedule(), rho=4),
    "4 from 10": StepPlan.karras(4, EDMSchedule(), rho=3, sigma_max=10.0),
    "1 from 5": StepPlan.karras(1, EDMSchedule(), rho=7, sigma_max=5.0),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_stock_pipeline_gives_the_trainers_x0(
    name: str, tmp_path: Path, quick: None, reached: Reached
) -> None:
    """Same per-image seeds, 1e-5 in pixels, for the plan and for each part of it; each image on its
    own too. The x0 in between lie outside of [-1, 1], so a scheduler that clamps would differ."""
    teacher, plan = tiny_teacher(tmp_path / "teacher"), PLANS[name]
    generator, steps = loud(teacher), plan.steps
    export(generator, teacher, plan, tmp_path / "student", CARD)
    for used in (n for n in (1, 2, 4) if steps % n == 0):
        x0 = own(generator, teacher, plan.subset(used), LABELS)
        assert x0.abs().max() > 1.5
        images = stock(tmp_path / "student", used, SEEDS, LABELS)
        worst = float((images - to_pixels(x0)).abs().max())
        reached("edm-pixels", "student", worst)
        assert worst < TOLERANCE
        assert images.std() > 0.1
    alone = stock(tmp_path / "student", steps, SEEDS[2:3], LABELS[2:3])
    assert (alone - images[2:3]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", PLANS)
def test_the_schedulers_noise_levels_are_the_plans(
    name: str, teacher: Teacher, tmp_path: Path, quick: None
) -> None:
    """Its default grid for as many calls is sigma at the plan's times; nothing is clamped."""
    plan, steps = PLANS[name], PLANS[name].steps
    export(teacher.student(), teacher, plan, tmp_path / "student", CARD)
    scheduler = DiffusionPipeline.from_pretrained(tmp_path / "student").scheduler
    scheduler.set_timesteps(steps)
    levels = teacher.denoiser.schedule(torch.tensor(plan.times, dtype=torch.float64))[1]
    grid = torch.as_tensor(np.asarray(scheduler.sigmas[:steps]), dtype=torch.float64)
    torch.testing.assert_close(grid, levels, rtol=1e-5, atol=0)
    assert scheduler.config.clip_denoised is False
    assert scheduler.config.sigma_data == 0.75


def test_the_null_class_cannot_be_drawn(teacher: Teacher, tmp_path: Path, quick: None) -> None:
    """The stock pipeline draws a random label when given none: only the ten real ones are left,
    with the embeddings they had."""
    export(teacher.student(), teacher, StepPlan(), tmp_path / "student", CARD)
    unet = DiffusionPipeline.from_pretrained(tmp_path / "student").unet
    assert unet.config.num_class_embeds == 10
    embedding = teacher.denoiser.backbone.network.class_embedding.weight
    assert len(embedding) == 11
    assert torch.equal(unet.class_embedding.weight, embedding[:10])
    images = stock(tmp_path / "student", 1, SEEDS, None)  # an unlabelled call runs
    assert images.shape == (4, 1, 8, 8)


def test_a_plan_the_pipeline_cannot_follow_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    """Times on no Karras grid, an ODE move: a sentence, and no folder."""
    for plan, says in (
        (StepPlan((1.0, 0.9, 0.1)), "no rho gives .*0.9, 0.1"),
        (StepPlan.uniform(2, ode_move), "noises x0_hat again.*ode"),
    ):
        with pytest.raises(UserError, match=says):
            export(teacher.student(), teacher, plan, tmp_path / "student", CARD)
    assert not list(tmp_path.iterdir())


def test_an_unconditional_teacher(tmp_path: Path, quick: None) -> None:
    """No class embedding there and none in the student; three channels."""
    channels = {"in_channels": 3, "out_channels": 3}
    folder = tiny_teacher_folder(
        tmp_path / "teacher", null_class=None, num_class_embeds=None, **channels
    )
    teacher = load_teacher(folder)
    assert teacher.num_classes is None
    plan = StepPlan.uniform(2)
    export(teacher.student(), teacher, plan, tmp_path / "student", CARD)
    assert json.loads((tmp_path / "student/stepdistill.json").read_text())["num_classes"] is None
    expected = to_pixels(own(teacher.student(), teacher, plan, None))
    images = stock(tmp_path / "student", 2, SEEDS, None)
    assert images.shape == (4, 3, 8, 8)
    assert (images - expected).abs().max() < TOLERANCE


def test_lora_is_fused_and_the_role_stays_as_it_is(
    teacher: Teacher, tmp_path: Path, quick: None
) -> None:
    """Full weights that equal base and adapters; the shared base is not changed."""
    role = trainable_role("generator", teacher.student(), LoRAOptions(rank=4), teacher.lora_targets)
    with torch.no_grad():
        for parameter in role.trainable().values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    base = own(teacher.student(), teacher, StepPlan(), LABELS)
    expected = own(role.frozen, teacher, StepPlan(), LABELS)  # type: ignore[arg-type]
    assert (expected - base).abs().max() > 0.01
    export(exportable(role), teacher, StepPlan(), tmp_path / "student", CARD)
    images = stock(tmp_path / "student", 1, SEEDS, LABELS)
    assert (images - to_pixels(expected)).abs().max() < TOLERANCE
    assert torch.equal(own(teacher.student(), teacher, StepPlan(), LABELS), base)
    assert torch.equal(own(role.frozen, teacher, StepPlan(), LABELS), expected)  # type: ignore[arg-type]


def test_a_failed_export_keeps_the_earlier_student(
    teacher: Teacher, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: the self-check, the disk (safetensors has its own error for it), a bug."""
    folder = tmp_path / "student"
    export(teacher.student(), teacher, StepPlan(), folder, CARD)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fails(error: Exception) -> None:
        def save(*_: object) -> None:
            folder.with_name("student.partial").mkdir(exist_ok=True)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(EDMPixels, "save", save)
            kind = type(error) if isinstance(error, KeyError) else StepDistillError
            with pytest.raises(kind):
                export(teacher.student(), teacher, StepPlan(), folder, CARD)

    for error in (OSError("full"), SafetensorError("full"), KeyError("a bug")):
        fails(error)
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "TOLERANCE", -1.0)
        with pytest.raises(StepDistillError, match="other samples than the trainer"):
            export(teacher.student(), teacher, StepPlan(), folder, CARD)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_check_sees_a_nan(teacher: Teacher, tmp_path: Path, quick: None) -> None:
    """A student that makes NaN is not within any tolerance."""
    teacher = tiny_teacher(tmp_path / "teacher")
    generator = teacher.student()
    with torch.no_grad():
        generator.backbone.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(StepDistillError, match="differ by nan"):
        export(generator, teacher, StepPlan(), tmp_path / "student", CARD)


def test_the_model_card_says_how_to_sample(teacher: Teacher, tmp_path: Path, quick: None) -> None:
    """Its Python block runs as it stands, in the folder."""
    export(teacher.student(), teacher, StepPlan.uniform(2), tmp_path / "student", CARD)
    text = (tmp_path / "student" / "README.md").read_text()
    code = (
        text.split("```python\n")[1].split("```")[0].replace('"."', repr(str(tmp_path / "student")))
    )
    names: dict[str, object] = {}
    exec(code, names)
    samples = names["samples"]
    assert isinstance(samples, list)
    assert len(samples) == 1


@pytest.mark.slow
def test_nothing_of_ours_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real self-check, whose process cannot import stepdistill, for 1, 2 and 4 steps within
    1e-5; and such a process fails to import it indeed."""
    teacher = tiny_teacher(tmp_path / "teacher")
    generator, plan = loud(teacher), StepPlan.uniform(4)
    monkeypatch.setattr(selfcheck, "TOLERANCE", TOLERANCE)
    assert export(generator, teacher, plan, tmp_path / "student", CARD) < TOLERANCE
    first_lines = selfcheck._BEFORE.partition("import numpy")[0]
    command = [sys.executable, "-c", first_lines + "import stepdistill.plans"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
