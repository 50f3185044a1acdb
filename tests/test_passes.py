"""What a training step calls: no network pass is made twice, and f-distill makes no more than DMD2.

Counted are the calls of every denoiser and the samples in them, and the calls of the head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matching_setups import batch, build, guide, head, network
from torch import nn

from stepdistill.discriminator import CriticTrunk, TeacherTrunk
from stepdistill.divergences import DIVERGENCES, jensen_shannon
from stepdistill.methods import DMD2, LADD, DMD2Config, FDistill, FDistillConfig, LADDConfig
from stepdistill.plans import StepPlan
from stepdistill.roles import full

Counts = dict[str, list[int]]
B = 16


def count(calls: Counts, name: str, module: nn.Module) -> None:
    """Note the samples of each call of ``module``, and of views that are made of it."""

    def note(_: nn.Module, args: Any, given: Any, found: Any) -> None:
        first = args[0][0] if isinstance(args[0], tuple) else args[0]
        calls.setdefault(name, []).append(len(first))

    module.register_forward_hook(note, with_kwargs=True)


def passes(kind: Any, config: Any, trunk: str = "critic", **options: Any) -> dict[str, Counts]:
    """{"critic" or "generator": {network: samples of each of its calls}} of the two updates."""
    own, teacher = head(), network(seed=7)
    nets = [network(seed=5), network(seed=6), teacher]
    scale = config.guidance_scale
    real = guide(teacher, scale) if scale != 1 else teacher
    gan = CriticTrunk(own) if trunk == "critic" else TeacherTrunk(own, teacher, real)
    method = build(kind, config, networks=nets, gan=gan, **options)
    found: dict[str, Counts] = {"critic": {}, "generator": {}}
    calls: Counts = {}
    for name, role in method.roles.items():
        count(calls, name, role.module)
    count(calls, "teacher", teacher)
    for purpose, counts in found.items():
        calls.clear()
        getattr(method, f"{purpose}_loss")(batch(B, purpose)).value.backward()
        counts.update({name: list(sizes) for name, sizes in calls.items()})
    return found


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_distill_calls_what_dmd2_calls(divergence: str, scale: float) -> None:
    """The same networks on as many samples in both updates, with and without guidance.

    And fewer than DMD2 whose GAN draws noise of its own, as published.
    """
    config = FDistillConfig(divergence=divergence, guidance_scale=scale, ramp=0)
    mine = passes(FDistill, config, divergence=DIVERGENCES[divergence])
    shared = DMD2Config(guidance_scale=scale, gan_own_noise=False)
    assert mine == passes(DMD2, shared)
    published = passes(DMD2, DMD2Config(guidance_scale=scale))
    for purpose, counts in published.items():
        assert all(sum(mine[purpose][name]) <= sum(sizes) for name, sizes in counts.items())
    assert sum(mine["generator"]["critic"]) < sum(published["generator"]["critic"])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_passes_with_a_head_on_the_critic(scale: float) -> None:
    """Shared noise: one pass of each network in the generator's update, and one of the critic, of

    fake and real together, in its own; with own noise the judged samples are others.
    """
    guided = B if scale == 1 else 2 * B
    shared = passes(DMD2, DMD2Config(guidance_scale=scale, gan_own_noise=False))
    assert shared["critic"] == {"generator": [B], "critic": [2 * B], "head": [2 * B]}
    assert shared["generator"] == {
        **{"generator": [B], "critic": [B], "head": [B]},
        "teacher": [guided],
    }
    own = passes(DMD2, DMD2Config(guidance_scale=scale))
    assert own["critic"] == {"generator": [B], "critic": [3 * B], "head": [3 * B]}
    assert own["generator"] == {
        **{"generator": [B], "critic": [B, B], "head": [B]},
        "teacher": [guided],
    }


@pytest.mark.parametrize("kind", ["dmd2", "fdiv"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_passes_with_a_head_on_the_teacher(kind: str, scale: float) -> None:
    """Shared noise: the pass that gives x0_real, guided or not, gives the features as well."""
    guided = B if scale == 1 else 2 * B
    if kind == "fdiv":
        config = FDistillConfig(guidance_scale=scale, ramp=0)
        shared = passes(FDistill, config, "teacher", divergence=jensen_shannon)
    else:
        config = DMD2Config(guidance_scale=scale, gan_own_noise=False)
        shared = passes(DMD2, config, "teacher")
        own = passes(DMD2, DMD2Config(guidance_scale=scale), "teacher")
        assert sorted(own["generator"]["teacher"]) == sorted([B, guided])  # of other samples
    assert shared["critic"] == {
        **{"generator": [B], "critic": [B], "head": [2 * B]},
        "teacher": [2 * B],
    }
    assert shared["generator"] == {
        **{"generator": [B], "critic": [B], "head": [B]},
        "teacher": [guided],
    }


def test_no_samples_are_seen_twice() -> None:
    """In neither update does any network see the same x_t in two calls."""
    for trunk in ("critic", "teacher"):
        own, teacher = head(), network(seed=7)
        gan = CriticTrunk(own) if trunk == "critic" else TeacherTrunk(own, teacher)
        nets = [network(seed=5), network(seed=6), teacher]
        method = build(DMD2, DMD2Config(r1_weight=1.0), networks=nets, gan=gan, steps=2)
        seen: dict[int, list[torch.Tensor]] = {}

        def keep(module: nn.Module, args: Any, found: Any, seen: Any = seen) -> None:
            seen.setdefault(id(module), []).extend(args[0].detach())

        for module in (*(method.roles[n].module for n in ("generator", "critic")), teacher):
            module.register_forward_hook(keep)
        for purpose in ("critic", "generator"):
            seen.clear()
            getattr(method, f"{purpose}_loss")(batch(B, purpose))
            for rows in seen.values():
                assert len(torch.stack(rows).unique(dim=0)) == len(rows)


def test_ladd_asks_no_critic_and_the_teacher_once() -> None:
    """A pass of generator, teacher and head in each update; of fake and real together in L_D."""
    generator, teacher, own = full("generator", network(seed=5)), network(seed=7), head()
    method: Any = LADD(generator, own, teacher, StepPlan(), LADDConfig(), sample_shape=(3,))
    calls: Counts = {}
    for name, module in (
        ("generator", generator.module),
        ("teacher", teacher),
        ("head", own.module),
    ):
        count(calls, name, module)
    method.critic_loss(batch(B, "critic"))
    assert calls == {"generator": [B], "teacher": [2 * B], "head": [2 * B]}
    calls.clear()
    method.generator_loss(batch(B))
    assert calls == {"generator": [B], "teacher": [B], "head": [B]}
