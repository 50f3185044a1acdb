"""The scheduler that travels with students whose plan no stock scheduler follows."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import check_exports_here
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipelines import CALLS, PIPELINES

from stepdistill.backbones import schedulers
from stepdistill.denoisers import PredictsFlow
from stepdistill.errors import UserError
from stepdistill.export import export, export_lora
from stepdistill.plans import StepPlan, ode_move
from stepdistill.rehearsal import without_data
from stepdistill.roles import LoRAOptions, trainable_role
from stepdistill.schedules import FlowSchedule
from stepdistill.shipped import FLOW_SCHEDULER, shipped_class, trust
from stepdistill.students import load_student
from stepdistill.teachers import LoadOptions, Teacher, load_teacher

UNEVEN = StepPlan((1.0, 0.9, 0.5, 0.2))
# loads, samples, saves, loads what was saved, samples: where stepdistill is not
AGAIN = """
import json, sys
sys.modules["stepdistill"] = None
import torch
from diffusers import DiffusionPipeline

def samples(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    found = pipeline(
        "a red fox", guidance_scale=1.0, height=32, width=32, num_inference_steps=4,
        generator=generator, output_type="latent",
    )[0]
    return pipeline, found

first, second, third = sys.argv[1:]
pipeline, once = samples(first)
pipeline.save_pretrained(second)
index = json.load(open(f"{second}/model_index.json"))
assert index["scheduler"] == ["few_step_flow", "FewStepFlowScheduler"], index
assert open(f"{second}/scheduler/few_step_flow.py").read()
again, twice = samples(second)
again.save_pretrained(third)
_, thrice = samples(third)
assert once.std() > 0.1
assert torch.equal(once, twice) and torch.equal(once, thrice)
"""


def sd3(folder: Path) -> Teacher:
    PIPELINES["sd3"]().save_pretrained(folder)
    return load_teacher(folder, options=LoadOptions(height=32, width=32))


@pytest.mark.parametrize("gives_sigmas", [False, True])
@pytest.mark.parametrize("times", [(1.0, 0.9, 0.5, 0.2), (0.8,), (0.7, 0.3)])
def test_it_walks_the_plan_where_none_of_diffusers_does(
    times: tuple[float, ...], gives_sigmas: bool
) -> None:
    """By default and where the pipeline passes sigmas; evenly spaced parts of a plan too."""
    plan, schedule = StepPlan(times), FlowSchedule(3.0)
    found = schedulers.few_step(schedule, PredictsFlow(), plan, gives_sigmas)
    assert type(found).__name__ == "FewStepFlowScheduler"
    levels = schedule(torch.tensor(times, dtype=torch.float64))[1].float()
    found.set_timesteps(sigmas=[0.5] * len(times), mu=1.0)
    torch.testing.assert_close(found.sigmas, torch.cat([levels, torch.zeros(1)]))
    torch.testing.assert_close(found.timesteps, 1000 * levels)
    found.set_timesteps(1)
    torch.testing.assert_close(found.sigmas[:1], levels[:1])
    even = schedulers.few_step(schedule, PredictsFlow(), StepPlan.uniform(4), gives_sigmas)
    assert isinstance(even, FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize("stochastic", [True, False])
def test_its_steps_are_those_of_diffusers(stochastic: bool) -> None:
    """On a grid that both can walk."""
    plan = StepPlan.uniform(4) if stochastic else StepPlan.uniform(4, ode_move)
    stock = schedulers.few_step(FlowSchedule(), PredictsFlow(), plan)
    ours = shipped_class(*FLOW_SCHEDULER)(
        noise_levels=list(plan.times), stochastic_sampling=stochastic
    )
    stock.set_timesteps(4)
    ours.set_timesteps(4)
    moved = []
    for scheduler in (stock, ours):
        torch.manual_seed(0)
        x = torch.randn(2, 3)
        for timestep in scheduler.timesteps:
            x = scheduler.step(x.sin() * timestep / 1000, timestep, x, return_dict=False)[0]
        moved.append(x)
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-5)


def test_other_numbers_of_steps_are_refused() -> None:
    """Those that do not divide, and any part of a plan whose steps were trained as one."""
    made = shipped_class(*FLOW_SCHEDULER)
    for whole, count in ((False, 3), (False, 8), (True, 2)):
        scheduler = made(noise_levels=[1.0, 0.9, 0.5, 0.2], whole=whole)
        with pytest.raises(ValueError, match=f"trained for 4 steps.*not {count}"):
            scheduler.set_timesteps(count)


@pytest.mark.slow
def test_a_student_of_an_uneven_plan(tmp_path: Path) -> None:
    """Its folder checks itself at export, and loads, samples and saves again without stepdistill;
    our own commands load it, until its code is not ours."""
    teacher = sd3(tmp_path / "teacher")
    folder = tmp_path / "student"
    assert export(teacher.student(), teacher, UNEVEN, folder) < 1e-4
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    again = [str(folder), str(tmp_path / "second"), str(tmp_path / "third")]
    done = subprocess.run([sys.executable, "-c", AGAIN, *again], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    schedule = teacher.denoiser.schedule
    levels = schedule(torch.tensor(UNEVEN.times, dtype=torch.float64))[1].tolist()
    assert load_student(folder).pipeline.scheduler.config.noise_levels == levels
    for device in ("cpu", "meta"):
        with without_data() if device == "meta" else contextlib.nullcontext():
            options = LoadOptions(height=32, width=32)
            as_teacher = load_teacher(folder, device, options).denoiser.schedule
        assert isinstance(as_teacher, FlowSchedule)
        assert as_teacher.shift == schedule.shift == 3
    other = shutil.copytree(folder, tmp_path / "other")
    with (other / "scheduler" / "few_step_flow.py").open("a") as file:
        file.write("\nOTHER = True\n")
    assert trust(folder) == {"trust_remote_code": True}
    assert trust(other) == {}
    with pytest.raises(UserError, match="contains custom code"):
        load_student(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "wan-t2v"])
def test_pipelines_of_other_habits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that passes sigmas and packs its latents, one that takes neither sigmas nor timesteps.

    Parts of the plan can be called where our scheduler travels, or the pipeline makes the grid.
    """
    check_exports_here(monkeypatch)
    PIPELINES[name]().save_pretrained(tmp_path / "teacher")
    size = CALLS[name]
    options = LoadOptions(
        height=size.get("height"), width=size.get("width"), frames=size.get("num_frames")
    )
    teacher = load_teacher(tmp_path / "teacher", options=options)
    difference = export(teacher.student(), teacher, UNEVEN, tmp_path / "student")
    assert difference < 1e-4  # at each of these numbers of steps
    assert load_student(tmp_path / "student").counts == (1, 2, 4)
    assert (tmp_path / "student" / "scheduler" / "few_step_flow.py").exists()
    counts = teacher.family.counts
    assert counts(teacher, replace(UNEVEN, whole=True)) == [4]
    even = counts(teacher, StepPlan.uniform(4))  # diffusers' scheduler: its grid, or the pipeline's
    assert even == ([1, 2, 4] if name == "flux" else [4])


@pytest.mark.slow
def test_a_lora_of_an_uneven_plan(tmp_path: Path) -> None:
    """Its card's code, which takes the scheduler's class from the folder, is run at export."""
    teacher = sd3(tmp_path / "teacher")
    options = LoRAOptions(rank=2)
    role = trainable_role("generator", teacher.student(), options, teacher.lora_targets)
    assert export_lora(role.frozen, teacher, UNEVEN, tmp_path / "lora") < 1e-4
