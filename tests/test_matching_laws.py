"""Laws of the methods that match distributions: SiD, VSD, SNOOPI, DMD, SFD and LADD.

Where a law speaks of data N(M, S^2) and a student a + b z, the notation is that of ``test_laws``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from matching_setups import (
    CLASSES,
    DIM,
    NULL,
    batch,
    build,
    by_hand,
    guide,
    head,
    network,
    noisy,
    watch,
)
from test_laws import (
    MATCHING,
    MEANS,
    SCHEDULES,
    STDS,
    A,
    B,
    Double,
    Line,
    M,
    S,
    close,
    every_matching,
    gaussian,
    labels,
    noise,
    predictions,
    quadrature,
)
from tiny import tiny_teacher
from torch import Tensor, nn

from stepdistill.backbones.exact import GaussianMixture
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Denoiser, Prediction, PredictsEps, PredictsX0
from stepdistill.discriminator import Head, Noisy
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.losses import pseudo_huber, sid_loss, squared_error
from stepdistill.methods import (
    DMD,
    DMD2,
    LADD,
    SFD,
    SNOOPI,
    VSD,
    Batch,
    DMD2Config,
    DMDConfig,
    LADDConfig,
    SFDConfig,
    SiD,
    SiDConfig,
    SNOOPIConfig,
    VSDConfig,
)
from stepdistill.methods.matching import Seen
from stepdistill.plans import StepPlan
from stepdistill.roles import Role, full
from stepdistill.schedules import FlowSchedule, expand_like

every_alpha = pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])


def grads(value: Tensor, *modules: nn.Module) -> list[Tensor | None]:
    """d value / d (every parameter), None where it plays no part."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True))


def same_grads(one: list[Tensor | None], other: list[Tensor | None]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


# --- SiD ---------------------------------------------------------------------------------------


def apart(name: str, a: Tensor | float, b: Tensor | float) -> tuple[Any, Any, Any, Any]:
    """mu_r - mu_f = offset + slope (x_t - alpha a) for the student a + b z; alpha, and w.

    mu_r = m + alpha S^2/v (x_t - alpha m), mu_f = a + alpha b^2/w (x_t - alpha a).
    """
    t = torch.tensor([MATCHING[name]], dtype=torch.float64)
    alpha, sigma = (x.item() for x in SCHEDULES[name](t))
    v, w = alpha**2 * S**2 + sigma**2, alpha**2 * b**2 + sigma**2
    return (M - a) * sigma**2 / v, alpha * (S**2 / v - b**2 / w), alpha, w


@every_matching
def test_sids_identity(name: str) -> None:
    """E[(mu_r - mu_f)(mu_f - x0)] = 0 for the exact mu_f = E[x0 | x_t], by exact quadrature."""
    weight, (z, eps) = quadrature()
    x0, real, fake, _, _ = predictions(name, z, eps)
    assert (weight * (real - fake) * (fake - x0)).sum().item() == pytest.approx(0.0, abs=1e-12)
    assert (weight * (real - fake) * (real - x0)).sum().item() > 0.05


@every_alpha
@every_matching
def test_sids_loss_is_the_fisher_divergence(name: str, alpha: float) -> None:
    """E[L omega] = (1 - a) E (mu_r - mu_f)^2, whose closed form is offset^2 + slope^2 w.

    omega = |x0 - mu_r|, the divisor. E (mu_r - mu_f)^2 is (sigma^4/alpha^2) E (s_r - s_f)^2.
    """
    weight, (z, eps) = quadrature()
    x0, real, fake, _, _ = predictions(name, z, eps)
    found = (weight * (sid_loss(x0, real, fake, alpha) * (x0 - real).abs()[:, 0])[:, None]).sum()
    offset, slope, _, w = apart(name, A, B)
    assert found.item() == pytest.approx((1 - alpha) * (offset**2 + slope**2 * w), abs=1e-12)


@every_alpha
@every_matching
def test_sids_gradient(name: str, alpha: float) -> None:
    """d/d(a, b) of E[L omega] through x0 and both scores, whose weights do not learn:

    grad E[L omega] = 1/2 grad F + (1/2 - a) grad_frozen F,   F = E (mu_r - mu_f)^2

    where grad F lets mu_f be the exact critic at each (a, b), and grad_frozen F keeps it as it is.
    At a = 1/2 it is F's own gradient. F is by its closed form; grad F by finite differences.
    """
    weight, (z, eps) = quadrature()
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (A, B))
    schedule, cond = SCHEDULES[name], Conditioning.empty(len(z))
    t = torch.full((len(z),), MATCHING[name], dtype=torch.float64)
    x0 = a + b * z
    x_t = schedule.add_noise(x0, t, eps)
    real, fake = (gaussian(schedule, *law)(x_t, t, cond).x0_hat for law in ((M, S), (A, B)))
    loss = sid_loss(x0, real, fake, alpha) * (x0 - real).abs()[:, 0].detach()
    found = torch.autograd.grad((weight[:, 0] * loss).sum(), (a, b))

    def fisher(a: float, b: float) -> float:
        offset, slope, _, w = apart(name, a, b)
        return float(offset**2 + slope**2 * w)

    step = 1e-5
    whole = (
        (fisher(A + step, B) - fisher(A - step, B)) / (2 * step),
        (fisher(A, B + step) - fisher(A, B - step)) / (2 * step),
    )
    offset, slope, scale, _ = apart(name, A, B)
    frozen = (2 * offset * slope * scale, 2 * slope**2 * scale**2 * B)
    for each, f, g in zip(found, whole, frozen, strict=True):
        assert each.item() == pytest.approx(f / 2 + (0.5 - alpha) * g, rel=1e-6)
    assert min(abs(x) for x in (*whole, *frozen)) > 1e-3


def sid_by_hand(x0: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """mean_B [ mean (r - f)((r - x) - a (r - f)) / sg mean |x - r| ]."""
    omega = (x0 - real).abs().mean(1).detach()
    return (((real - fake) * ((real - x0) - alpha * (real - fake))).mean(1) / omega).mean()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_sids_gradient_flows_through_both_scores_and_into_no_frozen_weight(scale: float) -> None:
    """match: value and d/dx0 are those of the formula with plain calls; critic, teacher get none.

    With either score cut off the gradient is another.
    """
    config = SiDConfig(guidance_scale=scale)
    method, (x0, seen) = build(SiD, config), noisy()
    x0.requires_grad_()
    schedule = FlowSchedule()
    eps = noise(16, DIM, seed=9)
    x_t = schedule.add_noise(x0, seen.t, eps)
    loss = method.match(x0, Noisy(x_t, seen.t, seen.cond), batch())
    real = by_hand(method.real if scale == 1 else method.real.denoiser, *_at(x_t, seen), scale)
    fake = by_hand(method.critic.module, *_at(x_t, seen), scale)
    expected = sid_by_hand(x0, real, fake, config.alpha)
    close(loss.value, expected)
    (found,) = torch.autograd.grad(loss.value, x0, retain_graph=True)
    close(found, torch.autograd.grad(expected, x0, retain_graph=True)[0])
    for cut in ((real.detach(), fake), (real, fake.detach())):
        (other,) = torch.autograd.grad(sid_by_hand(x0, *cut, config.alpha), x0, retain_graph=True)
        assert (other - found).abs().max() > 1e-2 * found.abs().max()
    assert all(g is None for g in grads(loss.value, method.critic.module))


def _at(x_t: Tensor, seen: Noisy) -> tuple[Tensor, Tensor, Conditioning]:
    return x_t, seen.t, seen.cond


def test_sids_generator_loss_reaches_every_weight_of_the_generator_alone() -> None:
    """d/dtheta is the formula's, the same draws; critic and teacher get no gradient."""
    config = SiDConfig(t_min=0.2, t_max=0.7)
    method = build(SiD, config)
    method.real.requires_grad_(True)  # a teacher is frozen; here it could learn, if let
    loss = method.generator_loss(batch())
    draws, cond = Double(0, 3, "generator"), batch().cond
    z = draws.normal(16, DIM)
    draws.shared_index(1)
    x0 = method.generator.module(z, torch.ones(16, dtype=torch.float64), cond).x0_hat
    t = draws.uniform(16, 0.2, 0.7)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * draws.normal(16, DIM)
    seen = (method.real(x_t, t, cond).x0_hat, method.critic.module(x_t, t, cond).x0_hat)
    expected = sid_by_hand(x0, *seen, config.alpha)
    close(loss.value, expected)
    mine = grads(loss.value, method.generator.module)
    assert all(g is not None and g.abs().max() > 0 for g in mine)
    same_grads(mine, grads(expected, method.generator.module))
    assert all(g is None for g in grads(loss.value, method.critic.module))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sids_critic_learns_under_guidance(scale: float) -> None:
    """L_F = w(t) |null + scale (cond - null) - x0|^2, learning through both (SiD-LSG)."""
    method, (x0, seen) = build(SiD, SiDConfig(guidance_scale=scale)), noisy()
    loss = method.follow(x0, seen, batch(purpose="critic"))
    guided = by_hand(method.critic.module, *seen, scale)
    weight = seen.t**-2  # of u = eps - x0: x0_hat = x_t - t u
    expected = (weight * ((guided - x0) ** 2).mean(1)).mean()
    close(loss.value, expected)
    mine = grads(loss.value, method.critic.module)
    same_grads(mine, grads(expected, method.critic.module))
    (of_labels,) = (
        g
        for g, (name, _) in zip(mine, method.critic.module.named_parameters(), strict=True)
        if "label" in name
    )
    assert of_labels is not None
    assert (of_labels[CLASSES - 1].abs().max() > 0) == (scale != 1)


# --- VSD ---------------------------------------------------------------------------------------


def seen_by(method: Any, count: int = 16, schedule: Any = None) -> Seen:
    x0, points = noisy(count, schedule)
    return Seen(x0, *method.scores(points, batch(count)), points)


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_vsds_gradient_is_the_difference_of_guided_noises(scale: float) -> None:
    """sigma^2 (eps_real - eps_fake), both under guidance, of networks that predict eps on VP."""
    schedule = SCHEDULES["vp"]
    nets = [network(schedule, PredictsEps(), seed) for seed in (5, 6, 7)]
    method = build(VSD, VSDConfig(guidance_scale=scale), networks=nets, null_cond=NULL)
    _, points = noisy(schedule=schedule)
    sigma = (1 - schedule.knots[(points.t * 1000).round().long()]).sqrt()[:, None]
    alpha = (1 - sigma**2).sqrt()

    def eps(denoiser: Any) -> Tensor:
        """What the network itself says, guided."""
        both = []
        for cond in (points.cond, NULL.expand(16)):
            timestep = (points.t * 1000).round() - 1
            both.append(denoiser.backbone(points.x_t, timestep, cond))
        found: Tensor = both[1] + scale * (both[0] - both[1])
        return found

    gradient = method.gradient(seen_by(method, schedule=schedule), batch())
    expected = sigma**2 * (eps(nets[2]) - eps(nets[1]))
    close(gradient, expected, 1e-8)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-12
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", ["edm", "flow", "trigonometric"])
def test_another_schedule_leaves_vsds_weights_unchanged(name: str) -> None:
    """The same samples at the same SNR: x_t / sqrt(alpha^2 + sigma^2) is what VP has.

    Exact Gaussians see the same x0_hat there, so gradient and, of eps, critic weight are the same.
    """
    level = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)  # sigma/alpha
    y, x0, cond = noise(4, 1, seed=2), noise(4, 1), Conditioning.empty(4)

    def weights(schedule: Any) -> tuple[Tensor, Tensor]:
        t = schedule.time(-2 * level.log())
        alpha, _ = schedule(t)
        x_t = expand_like(alpha, y) * y
        config = VSDConfig(guidance_scale=1.0, critic_dropout=0.0)
        critic = Role("critic", gaussian(schedule, A, B))
        eps = Denoiser(Line(1), schedule, PredictsEps())
        critic.module.loss_weight = eps.loss_weight  # as if the network had predicted eps
        teacher: Any = gaussian(schedule, M, S)
        generator = full("generator", Denoiser(Line(1), schedule, PredictsX0()))
        method = VSD(generator, critic, teacher, StepPlan(), config, sample_shape=(1,))
        points = Noisy(x_t, t, cond)
        asked = Batch(None, cond, Double(0, 0, "generator"))
        seen = Seen(x0, *method.scores(points, asked), points)
        return method.gradient(seen, asked), method.critic_weight(t)

    for found, expected in zip(weights(SCHEDULES[name]), weights(SCHEDULES["vp"]), strict=True):
        close(found, expected, 1e-5)
        assert expected.abs().min() > 1e-3


def test_vsds_critic_of_eps_is_weighed_by_alpha_squared() -> None:
    """critic_loss = mean (alpha eps_hat - alpha eps)^2 for a network that predicts eps on VP."""
    schedule = SCHEDULES["vp"]
    nets = [network(schedule, PredictsEps(), seed) for seed in (5, 6, 7)]
    config = VSDConfig(guidance_scale=1.0, critic_dropout=0.0)
    method = build(VSD, config, networks=nets)
    calls = watch(method.critic.module)
    found = method.critic_loss(batch(64, "critic"))
    (call,) = calls
    alpha, sigma = (x[:, None] for x in schedule(call.t))
    made = watch(method.generator.module)
    x0 = method.student(method.generator, batch(64, "critic"))
    assert len(made) == 1
    eps, eps_hat = (call.x_t - alpha * x0) / sigma, (call.x_t - alpha * call.x0_hat) / sigma
    expected = ((alpha * eps_hat - alpha * eps) ** 2).mean()
    close(found.value.detach(), expected.detach(), 1e-8)
    assert eps.std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_vsds_critic_is_shown_null_as_often_as_told(probability: float) -> None:
    """Each sample with ``critic_dropout``, within 4 standard errors; in the critic's loss alone."""
    n = 4000
    config = VSDConfig(guidance_scale=1.0, critic_dropout=probability)
    method = build(VSD, config, null_cond=NULL)
    calls = watch(method.critic.module)
    method.critic_loss(batch(n, "critic"))
    (call,) = calls
    dropped = [told == CLASSES - 1 for told in call.told]
    error = 4 * (probability * (1 - probability) / n) ** 0.5
    assert abs(sum(dropped) / n - probability) <= error
    kept = batch(n).cond["class_labels"].tolist()
    assert all(d or told == own for d, told, own in zip(dropped, call.told, kept, strict=True))
    method.generator_loss(batch(n))
    assert calls[-1].told == kept


def test_vsd_asks_for_the_null_conditioning_that_it_shows() -> None:
    with pytest.raises(UserError, match=r"critic_dropout=0\.1 needs a teacher with a null"):
        build(VSD, VSDConfig())


# --- SNOOPI: PG-SB -----------------------------------------------------------------------------


class AllAt(Double):
    """Draws whose uniform numbers are all ``value``."""

    def __init__(self, value: float) -> None:
        super().__init__(0, 3, "generator")
        self.value = value

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.full((n,), self.value, dtype=torch.float64)


def snoopi(**options: Any) -> Any:
    return build(SNOOPI, SNOOPIConfig(), null_cond=NULL, **options)


def test_both_of_snoopis_scores_have_the_same_scale() -> None:
    """Equal networks: every sample's gradient is exactly 0 for whatever w it drew; others' is not.

    Each score is its network's under that w, sample by sample.
    """
    equal = snoopi(networks=[network(seed=5), network(seed=6), network(seed=6)])
    gradient = equal.gradient(seen_by(equal), batch())
    assert torch.equal(gradient, torch.zeros_like(gradient))
    method, (_, points) = snoopi(), noisy()
    w = Double(0, 3, "generator").uniform(16, 0.5, 4.0)
    assert w.max() - w.min() > 2
    real, fake = method.scores(points, batch())
    close(real, by_hand(method.teacher, *points, w))
    close(fake, by_hand(method.critic.module, *points, w))


def test_snoopis_scales_are_uniform() -> None:
    """w ~ U(low, high], one for each sample: mean and variance within 4 s.e., and the ends."""
    n, (low, high) = 20_000, (0.5, 3.0)
    asked: list[Any] = []

    def spy(denoiser: Any, scale: Any) -> Any:
        asked.append(scale)
        return guide(denoiser, scale)

    nets = [network(seed=seed) for seed in (5, 6, 7)]
    method = SNOOPI(
        full("generator", nets[0]),
        full("critic", nets[1]),
        nets[2],
        StepPlan(),
        SNOOPIConfig(guidance_range=(low, high)),
        sample_shape=(DIM,),
        guide=spy,
        null_cond=NULL,
    )
    asked.clear()
    method.scores(noisy(n)[1], batch(n))
    w, other = asked
    assert w is other
    assert w.shape == (n,)
    assert low < w.min() < low + 0.01
    assert high - 0.01 < w.max() <= high
    width = high - low
    assert abs(w.mean().item() - (low + high) / 2) < 4 * width / (12 * n) ** 0.5
    assert w.var().item() == pytest.approx(width**2 / 12, rel=0.03)


def test_a_scale_of_1_is_no_guidance() -> None:
    """w = 1: the scores, and with them the gradient, are VSD's without guidance."""
    method, (x0, points) = snoopi(), noisy()
    asked = batch()._replace(draws=AllAt(1.0))
    real, fake = method.scores(points, asked)
    close(real, method.teacher(*points).x0_hat)
    close(fake, method.critic.module(*points).x0_hat)
    unguided = build(VSD, VSDConfig(guidance_scale=1.0), null_cond=NULL)
    found = method.gradient(Seen(x0, real, fake, points), asked)
    close(found, unguided.gradient(seen_by(unguided), batch()))
    assert found.abs().max() > 0.1


def test_snoopi_is_guided_within_the_interval_alone() -> None:
    """guidance_interval (0.3, 0.6): w is 1 at every other time, and the same in both scores."""
    nets = [network(seed=seed) for seed in (5, 6, 7)]
    config, (_, points) = SNOOPIConfig(guidance_interval=(0.3, 0.6)), noisy()
    method = build(SNOOPI, config, networks=nets, null_cond=NULL)
    w = Double(0, 3, "generator").uniform(16, 0.5, 4.0)
    inside = (points.t > 0.3) & (points.t <= 0.6)
    assert 0 < inside.sum() < 16
    real, fake = method.scores(points, batch())
    w = torch.where(inside, w, torch.ones(16).double())
    close(real, by_hand(method.teacher, *points, w))
    close(fake, by_hand(method.critic.module, *points, w))


def test_snoopi_needs_guidance() -> None:
    nets = [network(seed=seed) for seed in (5, 6, 7)]
    roles = full("generator", nets[0]), full("critic", nets[1]), nets[2], StepPlan()
    with pytest.raises(UserError, match="guidance_range needs a guide"):
        SNOOPI(*roles, SNOOPIConfig(), sample_shape=(DIM,), null_cond=NULL)
    with pytest.raises(UserError, match="0 <= low < high is needed"):
        SNOOPIConfig(guidance_range=(2.0, 2.0))


# --- DMD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("distance", [pseudo_huber, squared_error], ids=lambda d: d.__name__)
def test_dmd_is_matching_and_a_regression_on_pairs(steps: int, distance: Any) -> None:
    """value = matching + weight E d(G(z, t_1), x0(z)): the pair's z at the plan's first time.

    The matched samples start from fresh noise: that term is DMD2's without a GAN, the same draws.
    """
    config = DMDConfig(regression_weight=0.3)
    method = build(DMD, config, steps=steps, distance=distance)
    calls, given = watch(method.generator.module), batch(pairs=True)
    loss = method.generator_loss(given)
    pair = calls[-1]
    assert torch.equal(pair.x_t, given.z)  # a flow's prior has unit variance
    assert (pair.t == 1.0).all()
    assert not any(torch.equal(call.x_t, given.z) for call in calls[:-1])
    regression = distance(pair.x0_hat, given.x0).mean()
    plain = build(DMD2, DMD2Config(gan_weight=0.0), steps=steps)
    matching = plain.generator_loss(batch(pairs=True)).value
    close(loss.value, matching + 0.3 * regression)
    close(loss.logs["matching"], matching.detach())
    close(loss.logs["regression"], regression.detach())
    of_matching = grads(matching, plain.generator.module)
    of_regression = grads(0.3 * regression, method.generator.module)
    expected = [a + b for a, b in zip(of_matching, of_regression, strict=True)]
    same_grads(grads(loss.value, method.generator.module), expected)


@pytest.mark.parametrize("given", [batch(), batch()._replace(x0=None)], ids=["no z", "no x0"])
def test_dmd_asks_for_pairs(given: Batch) -> None:
    with pytest.raises(UserError, match="make some with stepdistill precompute --pairs"):
        build(DMD, DMDConfig()).generator_loss(given)


# --- SFD ---------------------------------------------------------------------------------------

FORGET, OVERRIDE = labels(1), labels(2)


class ByClass(nn.Module):
    """G(z, c) = a_c + b_c z, a denoiser that learns."""

    def __init__(self, means: Tensor, stds: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(means.clone()), nn.Parameter(stds.clone())

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False) -> Any:
        k = cond["class_labels"]
        return Prediction(self.a[k] + self.b[k] * x_t)


def gaussian_classes(order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return MEANS[list(order)], STDS[list(order)]


def exact_sfd(made: tuple[int, ...]) -> SFD:
    """The generator makes the teacher's class ``made[k]`` of class k, and the critic knows it."""
    schedule = FlowSchedule()
    teacher: Any = GaussianMixture(schedule, *gaussian_classes((0, 1, 2)))
    critic = Role("critic", GaussianMixture(schedule, *gaussian_classes(made)))
    generator = Role("generator", ByClass(*gaussian_classes(made)))
    options: dict[str, Any] = {"forget": FORGET, "override": OVERRIDE}
    config = SFDConfig(forget_weight=0.5)
    return SFD(generator, critic, teacher, StepPlan(), config, sample_shape=(2,), **options)


def test_sfds_gradient_vanishes_where_the_forgotten_follows_its_override() -> None:
    """G(., c_f) ~ teacher's c_o, exact critic: d/d(a, b) is 0 sample by sample, for every class.

    Where c_f is still the teacher's own, c_f's parameters alone are moved.
    """
    asked = Batch(None, labels(*(0, 2) * 8), Double(0, 3, "generator"))
    forgotten = exact_sfd((0, 2, 2))
    for g in grads(forgotten.generator_loss(asked).value, forgotten.generator.module):
        assert g is not None
        assert g.abs().max() < 1e-12
    kept = exact_sfd((0, 1, 2))
    for g in grads(kept.generator_loss(asked).value, kept.generator.module):
        assert g is not None
        assert g[[0, 2]].abs().max() < 1e-12
        assert g[1].abs().min() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_sfds_losses_are_their_formula(scale: float) -> None:
    """L_G = SiD(c, c) + weight SiD(real: c_o, fake: c_f), L_F likewise, evaluated by hand.

    Of the batch's classes 0, 1, 2 the forgotten 1 is told to critic and generator, and 2 to the
    teacher; teacher, critic and generator are told nothing else.
    """
    config = SFDConfig(forget_weight=0.25, guidance_scale=scale, critic_log_normal=None)
    options = {"forget": FORGET, "override": OVERRIDE}
    method, given = build(SFD, config, **options), batch()
    loss = method.generator_loss(given)
    draws, teacher = Double(0, 3, "generator"), method.real if scale == 1 else method.real.denoiser
    cond, told = given.cond, labels(*(2 if k == 1 else k for k in _labels(given.cond)))
    ones, c_f = torch.ones(16, dtype=torch.float64), FORGET.expand(16)

    def made(of: Conditioning, *times: float) -> tuple[Tensor, Tensor, Tensor]:
        z = draws.normal(16, DIM)
        draws.shared_index(1)
        x0 = method.generator.module(z, ones, of).x0_hat
        t = draws.uniform(16, *times)
        return x0, (1 - t)[:, None] * x0 + t[:, None] * draws.normal(16, DIM), t

    x0, x_t, t = made(cond, 0.0, 0.8)
    draws.uniform(16)  # which override, of one
    real = by_hand(teacher, x_t, t, told, scale)
    fake = by_hand(method.critic.module, x_t, t, cond, scale)
    retained = sid_by_hand(x0, real, fake, 1.2)
    draws.uniform(16)  # which forgotten, of one
    x0, x_t, t = made(c_f, 0.0, 0.8)
    real = by_hand(teacher, x_t, t, OVERRIDE.expand(16), scale)
    fake = by_hand(method.critic.module, x_t, t, c_f, scale)
    forgotten = sid_by_hand(x0, real, fake, 1.2)
    close(loss.value, retained + 0.25 * forgotten)
    close(loss.logs["identity"], retained.detach())
    close(loss.logs["forgetting"], forgotten.detach())
    expected = grads(retained + 0.25 * forgotten, method.generator.module)
    same_grads(grads(loss.value, method.generator.module), expected)

    critic_loss = method.critic_loss(given._replace(draws=Double(0, 3, "critic")))
    draws, value = Double(0, 3, "critic"), torch.zeros((), dtype=torch.float64)
    for weight, of in ((1.0, cond), (0.25, c_f)):
        if weight < 1:
            draws.uniform(16)
        x0, x_t, t = made(of)
        guided = by_hand(method.critic.module, x_t, t, of, scale)
        value = value + weight * (t**-2 * ((guided - x0.detach()) ** 2).mean(1)).mean()
    close(critic_loss.value, value)
    same_grads(grads(critic_loss.value, method.critic.module), grads(value, method.critic.module))
    assert all(g is None for g in grads(critic_loss.value, method.generator.module))


def _labels(cond: Conditioning) -> list[int]:
    found: list[int] = cond["class_labels"].tolist()
    return found


def test_what_is_forgotten_is_told_its_override_to_the_teacher_alone() -> None:
    """What each network is told: the batch's own and c_f; the teacher c_o for each c_f."""
    config = SFDConfig(guidance_scale=1.0)
    method = build(SFD, config, forget=FORGET, override=OVERRIDE)
    networks = (method.real, method.critic.module, method.generator.module)
    teacher, critic, generator = map(watch, networks)
    given = batch()
    method.generator_loss(given)
    own = _labels(given.cond)
    assert 1 in own
    assert [call.told for call in generator] == [own, [1] * 16]
    assert [call.told for call in critic] == [own, [1] * 16]
    assert [call.told for call in teacher] == [[2 if k == 1 else k for k in own], [2] * 16]


def test_a_random_override_is_any_other_class(tmp_path: Any) -> None:
    """Without ``override``: all classes but the forgotten, equally often, never a forgotten one."""
    teacher = tiny_teacher(tmp_path)
    more = SFD.more(teacher, SFDConfig(forget=("3", "7")))
    others = [k for k in range(10) if k not in (3, 7)]
    assert (_labels(more["forget"]), _labels(more["override"])) == ([3, 7], others)
    method = build(SFD, SFDConfig(), forget=more["forget"], override=more["override"])
    n = 8000
    cond = labels(*(i % 10 for i in range(n)))
    asked = Batch(None, cond, Draws(0, 1, "generator"))
    found = method.overridden(cond, asked)["class_labels"]
    kept = cond["class_labels"]
    changed = (kept == 3) | (kept == 7)
    assert torch.equal(found[~changed], kept[~changed])
    counts = torch.bincount(found[changed], minlength=10)
    assert counts[3] == counts[7] == 0
    expected = changed.sum() / 8
    assert (counts[others] - expected).abs().max() < 5 * expected**0.5
    forgotten = method.forgotten(asked).cond["class_labels"]
    assert set(forgotten.tolist()) == {3, 7}
    assert abs((forgotten == 3).float().mean().item() - 0.5) < 4 * 0.5 / n**0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs something to forget"),
        ({"forget": tuple(map(str, range(10)))}, "names every class: leave one to make"),
        ({"forget": ("12",)}, "has the classes 0 to 9, and no 12"),
        ({"forget": ("3",), "override": ("x",)}, "and no x to forget or make"),
    ],
)
def test_what_cannot_be_forgotten(settings: Any, message: str, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=message):
        SFD.more(tiny_teacher(tmp_path), SFDConfig(**settings))


def test_settings_of_sfd_that_cannot_be_meant() -> None:
    with pytest.raises(UserError, match="override names what is to be forgotten: 3"):
        SFDConfig(forget=("3",), override=("3", "4"))
    with pytest.raises(UserError, match="forget_weight must be above 0"):
        SFDConfig(forget_weight=0.0)


# --- LADD --------------------------------------------------------------------------------------


def ladd(steps: int = 1, own: Role | None = None, **options: Any) -> Any:
    generator, teacher = full("generator", network(seed=5)), network(seed=7)
    config, plan = LADDConfig(**options), StepPlan.uniform(steps)
    return LADD(generator, own or head(), teacher, plan, config, sample_shape=(DIM,))


@pytest.mark.parametrize("logit", [-1.5, 0.0, 2.0])
def test_ladds_losses_at_known_logits(logit: float) -> None:
    """A head that says ``logit`` whatever it sees: L_D = softplus(l) + softplus(-l), L_G =
    softplus(-l), and R1 is 0."""
    torch.manual_seed(0)
    own = Role("head", Head([(8,)], 6).double())
    nn.init.zeros_(own.module.stacks[0][-1].weight)
    nn.init.constant_(own.module.stacks[0][-1].bias, logit)
    method = ladd(own=own, r1_weight=3.0)
    real, fake = math.log1p(math.exp(-logit)), math.log1p(math.exp(logit))
    close(method.critic_loss(batch(purpose="critic")).value.item(), fake + real)
    close(method.generator_loss(batch()).value.item(), real)


@pytest.mark.parametrize("r1", [0.0, 2.0])
def test_ladds_losses_are_their_formula(r1: float) -> None:
    """By hand from the teacher's features: the head alone learns from L_D, the generator from L_G,

    through the teacher's features alone. Times are log-normal, ln sigma/alpha ~ N(1, 1).
    """
    method, given = ladd(r1_weight=r1, r1_std=0.2), batch()
    ones = torch.ones(16, dtype=torch.float64)
    own = method.roles["head"].module
    method.trunk.requires_grad_(True)  # a teacher is frozen; here it could learn, if let

    def noised(draws: Any, cut: bool) -> tuple[Tensor, Tensor]:
        z = draws.normal(16, DIM)
        draws.shared_index(1)
        x0 = method.generator.module(z, ones, given.cond).x0_hat
        x0 = x0.detach() if cut else x0
        level = (1.0 + draws.normal(16, dtype=torch.float64)).exp()
        t = level / (1 + level)  # a flow's: sigma/alpha = t/(1 - t)
        return (1 - t)[:, None] * x0 + t[:, None] * draws.normal_like(x0), t

    def logits(x_t: Tensor, t: Tensor, cut: bool = True) -> Tensor:
        taken = method.trunk(x_t, t, given.cond, features=True).features
        found: Tensor = own(tuple(f.detach() for f in taken) if cut else taken)
        return found

    draws = Double(0, 3, "critic")
    fake, t = noised(draws, cut=True)
    eps = draws.normal_like(given.x0)
    real = (1 - t)[:, None] * given.x0 + t[:, None] * eps
    by_fake, by_real = logits(fake, t), logits(real, t)
    expected = (nn.functional.softplus(by_fake) + nn.functional.softplus(-by_real)).mean()
    if r1:
        nudged = given.x0 + 0.2 * draws.normal_like(given.x0)
        by_nudged = logits((1 - t)[:, None] * nudged + t[:, None] * eps, t)
        expected = expected + r1 * ((by_real - by_nudged) ** 2).mean()
    loss = method.critic_loss(given._replace(draws=Double(0, 3, "critic"))).value
    close(loss, expected)
    same_grads(grads(loss, own), grads(expected, own))
    resting = (method.generator.module, method.trunk)
    assert all(g is None for g in grads(loss, *resting))

    method.trunk.requires_grad_(False)
    x_t, t = noised(Double(0, 3, "generator"), cut=False)
    expected = nn.functional.softplus(-logits(x_t, t, cut=False)).mean()
    loss = method.generator_loss(given).value
    close(loss, expected)
    mine = grads(loss, method.generator.module)
    assert all(g is not None and g.abs().max() > 0 for g in mine)
    same_grads(mine, grads(expected, method.generator.module))
    assert all(g is None for g in grads(loss, own))
