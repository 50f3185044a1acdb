"""Each method of the family on each kind of teacher: three iterations of ``fit``.

On the built-in worlds and on tiny random SD-, SDXL-, DiT- and SD3-shaped pipelines: a finite
gradient that is not zero in every trainable tensor, whatever does not train bit-identical, the
losses equal to their formulas evaluated by hand, and the exported student equal to the trainer's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import check_exports_here
from formulas import FORMULAS, Hand
from test_families import load
from torch import Tensor

from stepdistill.data import TensorData
from stepdistill.distil.students import exportable
from stepdistill.export import export
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import METHODS
from stepdistill.methods.base import Batch, Loss
from stepdistill.plans import StepPlan
from stepdistill.roles import FULL, LoRAOptions
from stepdistill.teachers import Teacher, load_teacher

WORLDS = ("digits", "digits-t2i", "digits-flow")
TEACHERS = (*WORLDS, "sd15", "sdxl", "dit", "sd3")
NAMES = sorted({method for method, _ in FORMULAS})
# how they differ, so that each method meets each of these somewhere
GUIDED = ("digits", "digits-t2i", "sdxl", "sd3")
ADAPTED = ("digits-t2i", "sdxl", "sd3")  # by a LoRA, else all weights
IN_TWO_STEPS = ("digits", "sd15", "sd3")
SETTINGS: dict[str, dict[str, Any]] = {
    "dmd2": {"gan_weight": 0.1, "gan_critic_weight": 0.1},
    "fdiv": {"gan_weight": 0.1, "gan_critic_weight": 0.1, "ramp": 0, "bins": 2},
    "vsd": {"critic_rank": 4, "critic_alpha": 8.0, "critic_dropout": 0.5},
    "snoopi": {"critic_rank": 4, "critic_alpha": 8.0, "critic_dropout": 0.5},
    "sfd": {"forget_weight": 0.5},
    "ladd": {"head_lr": 1e-3},
}
FAST = (("vsd", "sd15"), ("sfd", "dit"))  # the others' tests are slow
ITERATIONS = 3


@cache
def teacher_of(name: str) -> Teacher:
    """Loaded once: no method may change it."""
    if name in WORLDS:
        return load_teacher(name)
    teacher = load(name)
    return replace(teacher, num_classes=teacher.family.classes(teacher.pipeline))


def build(name: str, teacher: Teacher) -> Any:
    """The method with settings as above."""
    kind, settings = METHODS[name], {"generator_lr": 1e-3, "critic_steps": 1}
    settings |= {} if name == "ladd" else {"critic_lr": 1e-3}
    if name not in ("ladd", "snoopi"):
        settings["guidance_scale"] = 2.0 if teacher.name in GUIDED else 1.0
    if name == "sfd":
        forgotten, made = map(str, teacher.examples(2))
        settings |= {"forget": (forgotten,), "override": (made,)}
    lora = LoRAOptions(rank=2, alpha=4.0) if teacher.name in ADAPTED else FULL
    plan = StepPlan.uniform(2 if teacher.name in IN_TWO_STEPS else 1)
    torch.manual_seed(0)
    config = kind.Config(**{**settings, **SETTINGS.get(name, {})})
    return kind.from_teacher(teacher, plan, config, lora)


def data_for(teacher: Teacher) -> TensorData:
    """Eight samples of four prompts or classes, as pairs of noise and sample."""
    generator = torch.Generator().manual_seed(0)
    z, x0 = torch.randn(2, 8, *teacher.sample_shape, generator=generator)
    return TensorData(0.5 * x0, teacher.encode(teacher.examples(4) * 2), z)


class Watched:
    """Follows a method through ``fit``: gradients, weights, and the last losses by hand."""

    def __init__(self, name: str, method: Any, teacher: Teacher) -> None:
        self.name, self.method, self.teacher = name, method, teacher
        self.largest: dict[str, float] = {}
        self.updated: list[str] = []
        self.by_hand: dict[str, tuple[float, float]] = {}
        self.before: dict[str, dict[str, Tensor]] = {}
        for role in method.roles.values():
            for key, parameter in role.trainable().items():
                self.largest[f"{role.name}.{key}"] = 0.0
                parameter.register_hook(self.gradient(f"{role.name}.{key}"))
        for purpose in method.updates:
            setattr(method, f"{purpose}_loss", self.losses(purpose))

    def gradient(self, name: str) -> Any:
        def keep(gradient: Tensor) -> None:
            assert gradient.isfinite().all(), name
            self.largest[name] = max(self.largest[name], gradient.abs().max().item())

        return keep

    def losses(self, purpose: str) -> Any:
        loss_of = getattr(self.method, f"{purpose}_loss")

        def loss(batch: Batch) -> Loss:
            self.compare()
            self.updated.append(purpose)
            found: Loss = loss_of(batch)
            if batch.draws.iteration == ITERATIONS:
                with torch.no_grad():
                    hand = Hand(self.method, self.teacher, batch)
                    expected = FORMULAS[self.name, purpose](hand)
                self.by_hand[purpose] = (found.value.item(), expected.item())
            return found

        return loss

    def compare(self) -> None:
        """The last update moved each of its roles, and no bit of anything else."""
        now = {name: copied(role.module.state_dict()) for name, role in self.method.roles.items()}
        now["teacher"] = copied(self.teacher.denoiser.state_dict())
        trained = self.method.updates[self.updated[-1]] if self.updated else ()
        for name, weights in self.before.items():
            moved = [k for k, v in weights.items() if not torch.equal(v, now[name][k])]
            assert bool(moved) == (name in trained), (self.updated[-1], name, moved[:3])
        self.before = now


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def cases() -> list[Any]:
    every = [(name, teacher) for teacher in TEACHERS for name in NAMES]
    return [pytest.param(*c, marks=() if c in FAST else pytest.mark.slow) for c in every]


@pytest.mark.parametrize(("name", "world"), cases())
def test_a_method_trains_a_student_of(
    name: str, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See the top of the file. A gradient is the largest of the iterations': a LoRA's first matrix
    has none while the second is zero, nor has a generator whose critic still is the teacher."""
    check_exports_here(monkeypatch)
    teacher = teacher_of(world)
    method = build(name, teacher)
    watched = Watched(name, method, teacher)
    config = FitConfig(max_steps=ITERATIONS, batch_size=2, shards=1, ema_half_life=0)
    result = fit(method, data_for(teacher), config, tmp_path / "run")
    watched.compare()
    assert watched.updated == ["critic", "generator"] * ITERATIONS
    assert [k for k, largest in watched.largest.items() if not largest > 0] == []
    for found, expected in watched.by_hand.values():
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert watched.by_hand.keys() == set(method.updates)
    with result.ema.applied():
        generator = exportable(method.roles["generator"])
        assert export(generator, teacher, method.plan, tmp_path / "student") < 1e-4
