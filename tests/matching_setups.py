"""Small float64 networks that are told one of a few classes, and methods over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from test_laws import Double, labels, noise
from torch import Tensor, nn

from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Denoiser, Denoises, Guided, Parametrization, PredictsFlow
from stepdistill.discriminator import CriticTrunk, Discriminator, Head, Noisy
from stepdistill.methods import Batch
from stepdistill.plans import StepPlan
from stepdistill.roles import Role, full
from stepdistill.schedules import FlowSchedule, Schedule

DIM, CLASSES, WIDTH = 3, 4, 8
NULL = labels(CLASSES - 1)  # the last label means none


def network(
    schedule: Schedule | None = None, parametrization: Parametrization | None = None, seed: int = 0
) -> Denoiser:
    """An MLP denoiser with random weights, told a class, tapped once; frozen like a teacher."""
    torch.manual_seed(seed)
    mlp = MLP(DIM, WIDTH, depth=1, num_class_embeds=CLASSES)
    nn.init.normal_(mlp.outward[-1].weight)
    denoiser = Denoiser(
        VectorBackbone(mlp), schedule or FlowSchedule(), parametrization or PredictsFlow()
    )
    return denoiser.double().eval().requires_grad_(False)


def guide(denoiser: Denoises, guidance_scale: float | Tensor) -> Guided:
    """As a teacher's family does it."""
    return Guided(denoiser, guidance_scale, NULL)


def by_hand(
    denoiser: Denoises, x_t: Tensor, t: Tensor, cond: Conditioning, w: float | Tensor = 1.0
) -> Tensor:
    """x0_null + w (x0_cond - x0_null), of two calls."""
    x0_cond = denoiser(x_t, t, cond).x0_hat
    x0_null = denoiser(x_t, t, NULL.expand(len(x_t))).x0_hat
    w = torch.as_tensor(w, dtype=x_t.dtype).expand(len(x_t))[:, None]
    return x0_null + w * (x0_cond - x0_null)


def head(seed: int = 3) -> Role:
    """A head on the features of :func:`network`."""
    torch.manual_seed(seed)
    return Role("head", Head([(WIDTH,)], 6).double())


def build(
    kind: Any,
    config: Any,
    schedule: Schedule | None = None,
    steps: int = 1,
    networks: Sequence[nn.Module] = (),
    gan: Discriminator | None = None,
    **options: Any,
) -> Any:
    """A method over three different networks (generator, critic, teacher), or the given ones."""
    found = networks or [network(schedule, seed=seed) for seed in (5, 6, 7)]
    roles = [full("generator", found[0]), full("critic", found[1]), found[2]]
    if getattr(config, "gan_weight", 0) > 0:
        options["discriminator"] = gan or CriticTrunk(head())
    plan = StepPlan.uniform(steps)
    return kind(*roles, plan, config, sample_shape=(DIM,), guide=guide, **options)


def batch(
    count: int = 16, purpose: str = "generator", iteration: int = 3, pairs: bool = False
) -> Batch:
    """Samples of all classes but null, and their draws; with ``pairs`` the noise they are from."""
    cond = labels(*(i % (CLASSES - 1) for i in range(count)))
    z = noise(count, DIM, seed=12) if pairs else None
    return Batch(noise(count, DIM, seed=11), cond, Double(0, iteration, purpose), z)


def noisy(count: int = 16, schedule: Schedule | None = None, seed: int = 1) -> tuple[Tensor, Noisy]:
    """(x0, the same noised to times all over the schedule)."""
    t = torch.linspace(100, 900, count, dtype=torch.float64).round() / 1000
    x0, cond = noise(count, DIM, seed=seed), batch(count).cond
    x_t = (schedule or FlowSchedule()).add_noise(x0, t, noise(count, DIM, seed=seed + 50))
    return x0, Noisy(x_t, t, cond)


class Call(NamedTuple):
    """One call of a denoiser: what it saw, and its x0_hat."""

    x_t: Tensor
    t: Tensor
    told: list[int]
    x0_hat: Tensor


def watch(module: nn.Module) -> list[Call]:
    """What ``module``, and views that are made of it later, are called with from now on."""
    calls: list[Call] = []

    def keep(_: nn.Module, args: Any, given: Any, found: Any) -> None:
        x_t, t, cond = args
        calls.append(Call(x_t, t, cond["class_labels"].tolist(), found.x0_hat))

    module.register_forward_hook(keep, with_kwargs=True)
    return calls
