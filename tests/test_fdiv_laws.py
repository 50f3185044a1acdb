"""Laws of f-distill: its weights, its bins, its running means, and the divergences it takes."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matching_setups import DIM, batch, build, network, watch
from run_tiny import Tiny, go, precision, samples, saved, state
from run_tiny import network as tiny_network
from test_laws import DIVERGENCES, SCHEDULES, close, every_divergence, noise
from torch import Tensor

from stepdistill.backbones.exact import ring
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.divergences import DIVERGENCES as NAMED
from stepdistill.divergences import divergence_of, weight_of
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.methods import DMD2, DMD2Config, FDistill, FDistillConfig
from stepdistill.plans import StepPlan
from stepdistill.roles import full
from stepdistill.running_means import RunningMeans
from stepdistill.schedules import EDMSchedule


def alone(sums: Tensor) -> Tensor:
    """The sum over one process."""
    return sums


def fdiv(name: str = "jensen_shannon", **options: Any) -> Any:
    config = FDistillConfig(divergence=name, **{"ramp": 0, **options})
    return build(FDistill, config, divergence=DIVERGENCES[name][0])


def fold(method: Any) -> None:
    for means in method.statistics.values():
        means.fold(alone)


# --- the weight --------------------------------------------------------------------------------


@every_divergence
def test_the_weight_is_h_of_the_ratio_over_its_mean(divergence: str) -> None:
    """Logits log p_t/q_t of two Gaussians, at q_t's samples in two bins of t: once the means are

    those of these samples, weight = h(r / mean r of the bin) / mean h, with r clamped.
    """
    method, n = fdiv(divergence, bins=2), 400
    x = noise(n)
    t = torch.cat([torch.full((n // 2,), 0.1), torch.full((n // 2,), 0.9)]).double()
    v, w = torch.where(t < 0.5, 0.6, 1.1), torch.where(t < 0.5, 0.5, 1.0)
    at = w.sqrt() * x  # q_t = N(0, w), p_t = N(0.4, v)
    logits = -0.5 * ((at - 0.4) ** 2 / v - at**2 / w + (v / w).log())
    logits[7], logits[300] = 9.0, -9.0  # a discriminator that is too sure
    for _ in range(60):  # averages of a constant: the decay forgets the first means
        method.weight(logits, t)
        fold(method)
    r = logits.exp().clamp(0.1, 20.0)
    assert r[7] == 20.0
    assert r[300] == pytest.approx(0.1)
    r = torch.cat([half / half.mean() for half in r.chunk(2)])
    f = DIVERGENCES[divergence][1]
    r.requires_grad_()
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    h = r.detach() ** 2 * second.detach()
    close(method.weight(logits, t), h / h.mean(), 1e-5)


@every_divergence
@pytest.mark.parametrize("seed", [1, 2])
def test_ratios_that_are_constant_in_each_bin_count_as_1(divergence: str, seed: int) -> None:
    """r = c_bin everywhere in a bin: after one update r / mean r = 1 and every weight is 1."""
    method, n = fdiv(divergence), 2000
    t = Draws(seed, 0, "times").uniform(n, 0.02, 0.981)
    constants = torch.linspace(-2, 2.5, 10).double()
    logits = constants[torch.bucketize(t, method.edges)]
    first = method.weight(logits, t)
    fold(method)
    assert divergence == "reverse_kl" or first.std() > 0.05
    close(method.statistics["ratio"].means, constants.exp(), 1e-5)
    h = DIVERGENCES[divergence][0]
    mean = method.statistics["h"].means
    close(method.weight(logits, t), h(torch.zeros(n).double()) / mean, 1e-5)
    for _ in range(40):
        method.weight(logits, t)
        fold(method)
    close(method.weight(logits, t), torch.ones(n), 1e-4)


@pytest.mark.parametrize("iteration", [5, 10_000])
def test_reverse_kl_is_dmd2_to_the_last_bit(iteration: int) -> None:
    """The same draws with shared noise: loss, terms and gradients are equal, twice in a row."""
    plain = build(DMD2, DMD2Config(gan_own_noise=False))
    weighed = fdiv("reverse_kl", ramp=100)
    for _ in range(2):
        for purpose in ("generator_loss", "critic_loss"):
            losses = [
                getattr(method, purpose)(batch(iteration=iteration)) for method in (plain, weighed)
            ]
            assert torch.equal(losses[0].value, losses[1].value)
            assert losses[0].logs == losses[1].logs
            updated = plain.updates[purpose.removesuffix("_loss")]
            every = [
                torch.autograd.grad(loss.value, parameters(method, updated), allow_unused=True)
                for loss, method in zip(losses, (plain, weighed), strict=True)
            ]
            assert all(torch.equal(a, b) for a, b in zip(*every, strict=True))
        fold(weighed)


def parameters(method: Any, roles: tuple[str, ...]) -> list[Tensor]:
    return [p for name in roles for p in method.roles[name].trainable().values()]


@every_divergence
def test_the_ramp_begins_with_dmd2(divergence: str) -> None:
    """Iteration 0: any divergence is DMD2. Half way: the mean of 1 and the weight; then it."""

    def value(iteration: int, **options: Any) -> float:
        draws = Draws(0, 3, "generator")
        given = batch()._replace(draws=AtIteration(draws, iteration))
        found: float = fdiv(divergence, **options).generator_loss(given).logs["matching"].item()
        return found

    plain = build(DMD2, DMD2Config(gan_own_noise=False))
    given = batch()._replace(draws=AtIteration(Draws(0, 3, "generator"), 0))
    expected = plain.generator_loss(given).logs["matching"].item()
    assert value(0, ramp=100) == expected
    method, points = fdiv(divergence), {}
    gradient = DMD2.gradient

    def keep(self: Any, seen: Any, given: Any) -> Tensor:
        points["seen"], points["g"] = seen, gradient(self, seen, given)
        found: Tensor = points["g"]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DMD2, "gradient", keep)
        method.generator_loss(batch()._replace(draws=AtIteration(Draws(0, 3, "generator"), 7)))
    seen, g = points["seen"], points["g"]
    weight = DIVERGENCES[divergence][0](seen.logits.detach().clamp(math.log(0.1), math.log(20)))
    for iteration, part in ((50, 0.5), (100, 1.0), (900, 1.0)):
        whole = (1 + part * (weight - 1))[:, None] * g
        assert value(iteration, ramp=100) == pytest.approx((0.5 * whole**2).mean().item(), rel=1e-9)


class AtIteration(Draws):
    """The numbers of ``draws`` in float64, told to be of another iteration."""

    def __init__(self, draws: Draws, iteration: int) -> None:
        super().__init__(draws.seed, iteration, draws.purpose, draws.shards)
        self.keyed = draws.iteration

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self._at(lambda: super(AtIteration, self).normal(*shape, dtype=torch.float64))

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._at(lambda: super(AtIteration, self).uniform(n, low, high))

    def _at(self, draw: Callable[[], Tensor]) -> Tensor:
        own, self.iteration = self.iteration, self.keyed
        try:
            return draw()
        finally:
            self.iteration = own


# --- bins --------------------------------------------------------------------------------------

LAWS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "part": {"t_min": 0.3, "t_max": 0.6},
    "log-normal": {"matching_log_normal": (-0.4, 1.0)},
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=[*SCHEDULES])
def test_bins_hold_equally_many_samples(schedule: Any, law: str) -> None:
    """A tenth each of 50,000 other times, within 5 standard errors of these and of the edges'."""
    config = FDistillConfig(divergence="jensen_shannon", **LAWS[law])
    nets = [network(schedule, seed=seed) for seed in (5, 6, 7)]
    method = build(FDistill, config, networks=nets, divergence=NAMED["jensen_shannon"])
    n = 50_000
    t = method.matching_times.draw(schedule, Draws(1, 1, "other"), n)
    counts = torch.bincount(torch.bucketize(t, method.edges), minlength=10)
    error = (0.09 / n + 2 * 0.09 / 10_000) ** 0.5
    assert len(counts) == 10
    assert (counts / n - 0.1).abs().max() < 5 * error
    widths = method.edges.diff()
    if law == "log-normal":  # of equal width they would not be
        assert widths.max() > 1.5 * widths.min()


# --- running means -----------------------------------------------------------------------------


def added(values: Tensor, index: Tensor, means: RunningMeans, cuts: int) -> RunningMeans:
    for some, where in zip(values.chunk(cuts), index.chunk(cuts), strict=True):
        means.add(some, where)
    return means


@pytest.mark.parametrize("cuts", [1, 2, 8])
def test_cutting_a_batch_changes_no_mean(cuts: int) -> None:
    """The whole batch, micro-batches of it, and two ranks of half of it: the same means."""
    means = [RunningMeans(4, 0.5) for _ in range(3)]
    for step in range(5):
        values, index = noise(64, seed=step).exp(), torch.arange(64) % 3
        index[:8] = 3 if step == 2 else 0
        whole, first, second = means
        added(values, index, whole, 1).fold(alone)
        halves = list(zip(values.chunk(2), index.chunk(2), strict=True))
        for rank, (some, where) in zip((first, second), halves, strict=True):
            added(some, where, rank, cuts)
        total = first._sums + second._sums
        for rank in (first, second):
            rank.fold(lambda sums, total=total: total)
        for rank in (first, second):
            close(rank.means, whole.means, 1e-6)
            assert torch.equal(rank.folds, whole.folds)
    assert whole.folds.tolist() == [5, 5, 5, 1]


def test_a_mean_is_even_at_first_and_forgets_then() -> None:
    """mean <- decay mean + (1 - decay) m, with decay min(folds/(folds + 1), decay); empty bins

    stay as they are: 1 until something was seen.
    """
    means, given = RunningMeans(3, 0.75), [2.0, 4.0, 9.0, 1.0, 7.0, 3.0]
    expected, folds = 1.0, 0
    for i, m in enumerate(given):
        assert means.at(torch.tensor([1, 1])).tolist() == pytest.approx([expected] * 2)
        means.add(torch.tensor([m - 1, m + 1]), torch.tensor([1, 1]))
        if i == 2:
            means.add(torch.tensor([5.0]), torch.tensor([2]))
        assert means.at(torch.tensor([1])).item() == pytest.approx(expected)  # not before the fold
        means.fold(alone)
        means.fold(alone)  # nothing was added since: nothing changes
        decay = min(folds / (folds + 1), 0.75)
        expected, folds = decay * expected + (1 - decay) * m, folds + 1
        assert means.means[1].item() == pytest.approx(expected)
        assert means.means[0] == 1.0
        assert means.means[2] == (5.0 if i >= 2 else 1.0)
    assert means.folds.tolist() == [0, 6, 1]


# --- in runs -----------------------------------------------------------------------------------


def tiny_fdiv(dropout: float = 0.1) -> tuple[Any, Any]:
    """f-distill towards the 2-D ring, as tests/run_tiny.py has DMD2."""
    tiny = Tiny(dropout=dropout)
    origin = tiny_network(tiny)
    teacher: Any = ring(origin.schedule)
    data = samples(tiny, teacher)
    config = FDistillConfig(
        generator_lr=1e-3,
        critic_lr=2e-3,
        critic_steps=2,
        gan_weight=0.1,
        gan_critic_weight=0.2,
        ramp=0,
        bins=4,
    )
    gan = CriticTrunk(build_head(origin, (2,), data.cond))
    roles = full("generator", origin), full("critic", origin)
    own = {"sample_shape": (2,), "discriminator": gan, "divergence": NAMED[config.divergence]}
    return FDistill(*roles, teacher, StepPlan.uniform(2), config, **own), data


def test_a_resumed_run_keeps_its_means(tmp_path: Path) -> None:
    """Ten iterations at once, and six then four: weights, moments and means to the last bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go(*tiny_fdiv(), whole, max_steps=10)
    go(*tiny_fdiv(), parts, max_steps=6)
    method, data = tiny_fdiv()
    assert method.statistics["ratio"].folds.sum() == 0
    go(method, data, parts, max_steps=10)
    assert saved(parts)[-1] == "000010"
    a, b = state(whole), state(parts)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    means = a["statistics/ratio/means"]
    assert means.shape == (4,)
    assert (means != 1).any()
    assert a["statistics/h/folds"].tolist() == [5.0]
    assert torch.equal(method.statistics["ratio"].means, means)


def test_a_run_without_its_means_would_be_another(tmp_path: Path, monkeypatch: Any) -> None:
    """They are part of the state: forgotten at the resume, the end is another."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go(*tiny_fdiv(), whole, max_steps=10)
    go(*tiny_fdiv(), parts, max_steps=6)
    method, data = tiny_fdiv()
    method.statistics = {}  # as a method that names none
    with pytest.raises(UserError, match="of other networks"):
        go(method, data, parts, max_steps=10)
    monkeypatch.setattr(RunningMeans, "tensors", lambda self: {})
    forgetful = tmp_path / "forgetful"
    go(*tiny_fdiv(), forgetful, max_steps=6)
    go(*tiny_fdiv(), forgetful, max_steps=10)
    kept, lost = state(whole), state(forgetful)
    assert not all(torch.equal(kept[k], lost[k]) for k in lost if k.startswith("ema/"))


def test_accumulated_micro_batches_have_the_means_of_the_whole(tmp_path: Path) -> None:
    """Batch 8 in one piece and in four: the same means and weights, in float64."""
    ends = []
    for accumulate in (1, 4):
        with precision(True):
            folder = tmp_path / str(accumulate)
            settings = {"accumulate": accumulate, "shards": 4, "max_steps": 6}
            go(*tiny_fdiv(dropout=0.0), folder, **settings)
            ends.append(state(folder))
    for key, value in ends[0].items():
        close(ends[1][key].double(), value.double(), 1e-5)
    assert (ends[0]["statistics/ratio/means"] != 1).any()


# --- divergences -------------------------------------------------------------------------------


@every_divergence
def test_a_users_f_gives_the_weight(divergence: str) -> None:
    """weight_of(f) = r^2 f''(r) is each of the seven closed forms, without a gradient."""
    h, f = DIVERGENCES[divergence]
    log_r = torch.linspace(-3, 3, 61, dtype=torch.float64)
    with torch.no_grad():  # as in the method
        found = weight_of(f)(log_r)
    close(found, h(log_r), 1e-9)
    assert not found.requires_grad
    assert weight_of(f)(log_r.float()).dtype == torch.float32


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of someone's own."""
    module: Any = types.ModuleType("own_divergences")
    module.total = lambda r: (r * r.log()).sum()
    module.kl = lambda r: r * r.log()
    module.concave = lambda r: r.sqrt()
    module.two = lambda log_r, other: log_r
    module.one = lambda log_r: log_r.exp().mean()
    module.negative = lambda log_r: log_r
    module.infinite = lambda log_r: log_r / 0
    module.h = lambda log_r: (0.5 * log_r).exp()
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_divergences", module)


@pytest.mark.usefixtures("own")
def test_a_divergence_of_someones_own() -> None:
    """A name, a function that gives h, or one that gives f."""
    log_r = torch.linspace(-2, 2, 9)
    assert divergence_of("jeffreys") is NAMED["jeffreys"]
    close(divergence_of("own_divergences:h")(log_r), (0.5 * log_r).exp())
    close(divergence_of("jensen_shannon", "own_divergences:kl")(log_r), log_r.exp(), 1e-5)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("divergence", "f", "message"),
    [
        ("forward", "", "divergence=forward is none of reverse_kl, forward_kl,"),
        ("nowhere:h", "", "divergence names nowhere:h, write module:function"),
        ("own_divergences:gone", "", "divergence names own_divergences:gone, write module"),
        ("own_divergences:number", "", "which is no function: write a function of a tensor"),
        ("own_divergences:two", "", "cannot be called with a tensor"),
        ("own_divergences:one", "", "gives no weight h"),
        ("own_divergences:negative", "", "gives no weight h"),
        ("own_divergences:infinite", "", "gives no weight h"),
        ("jensen_shannon", "own_divergences:concave", "gives no weight h"),
        ("jensen_shannon", "kl", "f names kl, write module:function"),
    ],
)
def test_what_is_no_divergence(divergence: str, f: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        divergence_of(divergence, f)


@pytest.mark.parametrize(
    "options",
    [
        {"gan_weight": 0.0},
        {"gan_own_noise": True},
        {"ratio_min": 0.0},
        {"ratio_min": 2.0, "ratio_max": 1.0},
        {"bins": 0},
        {"ramp": -1},
        {"bin_decay": 1.0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(options: Any) -> None:
    with pytest.raises(UserError):
        FDistillConfig(**options)


def test_the_ratio_is_taken_where_teacher_and_critic_look() -> None:
    """One x_t and t for the matching, the logits and the GAN's term."""
    method, asked = fdiv(), batch()
    critic, teacher = watch(method.critic.module), watch(method.real)
    method.generator_loss(asked)
    (one,), (other,) = critic, teacher
    assert torch.equal(one.x_t, other.x_t)
    assert torch.equal(one.t, other.t)
    assert one.x_t.shape == (16, DIM)
    assert isinstance(method.schedule, type(SCHEDULES["flow"]))
    assert not isinstance(method.schedule, EDMSchedule)
