"""The rehearsal against torch's own allocator, and the laws of what it counts."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mid_networks import BATCH, MIDS, denoiser, dmd2
from torch import nn
from torch.profiler import ProfilerActivity, profile

from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import GuidedWithin
from stepdistill.draws import Draws
from stepdistill.methods.base import Batch
from stepdistill.methods.dmd2 import DMD2
from stepdistill.methods.regression import Regression, RegressionConfig
from stepdistill.plans import StepPlan
from stepdistill.rehearsal import rehearse, without_data
from stepdistill.roles import full
from stepdistill.twins import on_meta

META = "meta"
MIB = 2**20


def allocated(run: Callable[[], None]) -> int:
    """The most bytes that ``run`` holds of the CPU allocator at once, as torch's profiler saw."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events, stack = [], list(seen.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack += event.children
        if event.tag.name == "Allocation":
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    live = peak = 0
    for _, size in sorted(events):
        live += size
        peak = max(peak, live)
    return peak


def measured(method: DMD2, purpose: str, cond: Conditioning, bf16: bool) -> int:
    """The peak of a real update, its second: the first makes what stays."""

    def update() -> None:
        x0 = torch.zeros(BATCH, *method.sample_shape)
        own = Conditioning({k: v.clone() for k, v in cond.items()})
        draws = Draws(0, 1, purpose, (0,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = getattr(method, f"{purpose}_loss")(Batch(x0, own, draws))
        loss.value.backward()

    def forget() -> None:
        for role in method.roles.values():
            for parameter in role.trainable().values():
                parameter.grad = None

    update()
    forget()
    peak = allocated(update)
    forget()
    return peak


CASES = [
    # network, rank, GAN, checkpointed, bf16, most relative error
    ("unet", 0, True, False, False, 0.02),
    ("unet", 0, False, False, True, 0.10),
    ("sd3", 8, True, True, False, 0.02),
    ("dit", 0, False, True, False, 0.02),
    ("dit", 8, True, False, False, 0.02),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank", "gan", "checkpointed", "bf16", "error"), CASES)
def test_the_estimate_is_what_the_allocator_sees(
    name: str, rank: int, gan: bool, checkpointed: bool, bf16: bool, error: float
) -> None:
    """Both updates of DMD2: full and LoRA roles, with and without GAN, checkpointing, autocast."""
    mid = MIDS[name]
    live = dmd2(mid, "cpu", rank=rank, gan=gan, checkpointed=checkpointed)
    twin = dmd2(mid, META, rank=rank, gan=gan, checkpointed=checkpointed)
    for purpose in ("critic", "generator"):
        cond = mid.conditioning(META)
        estimate = rehearse(twin, purpose, cond, mid.shape, "cpu", bf16=bf16)
        real = measured(live, purpose, mid.conditioning("cpu"), bf16)
        print(f"{name} {purpose}: {estimate / MIB:.1f} of {real / MIB:.1f} MiB")
        assert estimate == pytest.approx(real, rel=error)


def test_a_storage_counts_once_and_until_it_is_gone() -> None:
    """Views and in-place results are no new memory; the peak stays when the live bytes fall."""
    with without_data() as counted:
        a = torch.empty(1000, device=META)
        b = a.view(10, 100).t()
        b.add_(1)
        assert (counted.live, counted.peak) == (4000, 4000)
        c = a * 2
        assert counted.live == 8000
        del a
        assert counted.live == 8000  # b still looks at it
        del b
        assert counted.live == 4000
        del c
        assert (counted.live, counted.peak) == (0, 8000)


def test_what_was_there_before_is_nothing_until_it_is_replaced() -> None:
    """A weight that is cast away frees its bytes: layers that are cast while they compute."""
    weight = torch.empty(1000, device=META)
    with without_data() as counted:
        half = weight.half()
        assert counted.live == 2000
        del weight
        assert counted.live == 2000 - 4000
        del half


def attention(tokens: int, device: str, mask: bool = False) -> int:
    """Bytes at the peak of attention, forward and backward, in one head of width 64."""
    with without_data(device) as counted:
        q, k, v = (torch.empty(1, 1, tokens, 64, device=META, requires_grad=True) for _ in range(3))
        bias = torch.empty(1, 1, 1, tokens, device=META) if mask else None
        out = F.scaled_dot_product_attention(q, k, v, bias)
        torch.autograd.grad(out.sum(), (q, k, v))
    return counted.peak


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("mask", [False, True])
def test_attention_keeps_no_scores(device: str, mask: bool) -> None:
    """Memory linear in the tokens, with a mask too: the fused kernels' and not the plain one's."""
    assert attention(4096, device, mask) < 2.2 * attention(2048, device, mask)
    assert attention(4096, device, mask) < 4096 * 4096  # bytes: a quarter of the scores alone


@pytest.mark.parametrize(("device", "norm"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_autocast_without_data(device: str, norm: torch.dtype) -> None:
    """Layers compute in bf16; norms go up to float32 on a GPU and stay on a CPU."""
    linear, group = nn.Linear(8, 8, device=META), nn.GroupNorm(2, 8, device=META)
    with without_data(device, bf16=True):
        h = linear(torch.empty(4, 8, device=META))
        assert h.dtype == torch.bfloat16
        assert group(h).dtype == norm


def test_methods_that_learn_from_pairs_are_rehearsed() -> None:
    """Their batches hold the noise of each sample."""
    mid, cond = MIDS["dit"], MIDS["dit"].conditioning(META)
    role = full("generator", denoiser(mid, META))
    method = Regression(role, StepPlan(), RegressionConfig())
    peak = rehearse(method, "generator", cond, mid.shape, "cpu")
    assert peak > sum(4 * p.numel() for p in role.trainable().values())


@pytest.mark.slow
def test_guidance_at_some_times_alone_is_rehearsed_as_at_all() -> None:
    """There are no times to decide by: the most that a batch can need, of samples all guided."""
    mid = MIDS["dit"]
    method, cond = dmd2(mid, META, rank=8, gan=False, checkpointed=False), mid.conditioning(META)
    always = rehearse(method, "generator", cond, mid.shape, "cpu")
    method.real = GuidedWithin(method.real, method.teacher, (0.0, 0.7))
    within = rehearse(method, "generator", cond, mid.shape, "cpu")
    assert always <= within < 1.05 * always


@pytest.mark.slow
def test_gradients_of_one_micro_batch_stay_for_the_next() -> None:
    """Accumulating adds the gradients that are there to the peak of the later micro-batches."""
    mid = MIDS["dit"]
    method = dmd2(mid, META, rank=0, gan=False, checkpointed=True)
    cond = mid.conditioning(META)
    once = rehearse(method, "critic", cond, mid.shape, "cpu")
    twice = rehearse(method, "critic", cond, mid.shape, "cpu", micro_batches=2)
    often = rehearse(method, "critic", cond, mid.shape, "cpu", micro_batches=8)
    gradients = sum(4 * p.numel() for p in method.critic.trainable().values())
    assert once < twice == often < once + gradients
    assert all(p.grad is None for p in method.critic.trainable().values())


@pytest.mark.slow
def test_a_twin_shares_as_its_original_does() -> None:
    """One storage for a role and its frozen view, the same bytes, nothing on the CPU."""
    mid = MIDS["dit"]
    live = dmd2(mid, "cpu", rank=4, gan=True, checkpointed=False)
    twin = on_meta(live)
    assert twin.critic.module is twin.roles["critic"].module
    assert all(p.is_meta for p in twin.critic.module.parameters())

    def storages(method: DMD2) -> int:
        modules = [role.module for role in method.roles.values()]
        views = [role.frozen for role in method.roles.values()]
        found = {p.untyped_storage()._cdata for m in (*modules, *views) for p in m.parameters()}
        return len(found)

    assert storages(twin) == storages(live)
    own = {name for name, p in twin.critic.trainable().items()}
    assert own == set(live.critic.trainable())
    again = rehearse(twin, "critic", mid.conditioning(META), mid.shape, "cpu")
    built = dmd2(mid, META, rank=4, gan=True, checkpointed=False)
    fresh = rehearse(built, "critic", mid.conditioning(META), mid.shape, "cpu")
    assert again == pytest.approx(fresh, rel=1e-3)  # the table of the schedule moves there


def test_a_copied_role_is_a_role_of_its_own() -> None:
    """Its wrapper and view are not those of the original."""
    role = full("critic", nn.Linear(2, 2))
    copied = on_meta(role)
    assert copied(torch.empty(1, 2, device=META)).is_meta
    assert not role.module.weight.is_meta
