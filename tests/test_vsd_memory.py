"""What VSD holds in memory, in bytes: one base network for teacher, critic and a LoRA generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from test_generality import teacher_of
from torch import Tensor, nn

from stepdistill.draws import Draws
from stepdistill.methods import SNOOPI, VSD, Batch, SNOOPIConfig, VSDConfig
from stepdistill.plans import StepPlan
from stepdistill.roles import FULL, LoRAOptions

every_world = pytest.mark.parametrize("world", ["sd15", "digits-t2i"])
every_method = pytest.mark.parametrize(
    ("kind", "config"), [(VSD, VSDConfig(critic_rank=4)), (SNOOPI, SNOOPIConfig(critic_rank=4))]
)


def held(modules: Iterable[nn.Module]) -> int:
    """Bytes of the storages behind all parameters and buffers, each storage once."""
    storages: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def reachable(method: Any) -> list[nn.Module]:
    """Every module that the method's attributes and its roles hold, and the roles' views."""
    views = [view for role in method.roles.values() for view in (role.module, role.frozen)]
    own = [value for value in vars(method).values() if isinstance(value, nn.Module)]
    return [*views, *own]


def adapters(method: Any, role: str) -> int:
    parameters: list[Tensor] = list(method.roles[role].trainable().values())
    return sum(p.numel() * p.element_size() for p in parameters)


def one_update_each(method: Any, teacher: Any) -> None:
    """Both losses, a step of every weight: what is made on the way stays reachable."""
    cond = teacher.encode(teacher.examples(2))
    for purpose, names in method.updates.items():
        batch = Batch(None, cond, Draws(0, 1, purpose))
        getattr(method, f"{purpose}_loss")(batch).value.backward()
        trained = [p for name in names for p in method.roles[name].trainable().values()]
        torch.optim.SGD(trained, lr=1e-3).step()
        for parameter in trained:
            parameter.grad = None


@every_world
@every_method
def test_with_a_lora_generator_there_is_one_base(kind: Any, config: Any, world: str) -> None:
    """Teacher, critic and generator take the teacher's bytes and both roles' adapters: no more."""
    teacher = teacher_of(world)
    base = held([teacher.denoiser])
    method = kind.from_teacher(teacher, StepPlan(), config, LoRAOptions(rank=2))
    one_update_each(method, teacher)
    own = adapters(method, "critic") + adapters(method, "generator")
    assert held([teacher.denoiser, *reachable(method)]) == base + own
    assert own < base


@every_world
@every_method
def test_with_a_full_generator_there_are_two_and_no_third(
    kind: Any, config: Any, world: str
) -> None:
    """The teacher's bytes, which the critic shares, as many for the generator, and the adapters."""
    teacher = teacher_of(world)
    base = held([teacher.denoiser])
    method = kind.from_teacher(teacher, StepPlan(), config, FULL)
    one_update_each(method, teacher)
    found = held([teacher.denoiser, *reachable(method)])
    assert found == 2 * base + adapters(method, "critic")
    assert adapters(method, "critic") < base


def test_a_full_critic_is_a_third() -> None:
    """The measure tells: with critic_rank 0 there are three."""
    teacher = teacher_of("sd15")
    method = VSD.from_teacher(teacher, StepPlan(), VSDConfig(critic_rank=0), FULL)
    base = held([teacher.denoiser])
    assert held([teacher.denoiser, *reachable(method)]) == 3 * base
