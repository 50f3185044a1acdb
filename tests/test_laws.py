"""Laws that hold whatever is trained: teachers, distribution matching, divergences, GANs, ECT.

Notation: data N(m, S^2), a student x0 = a + b z, and at time t

    p_t = N(alpha m, v),  v = alpha^2 S^2 + sigma^2
    q_t = N(alpha a, w),  w = alpha^2 b^2 + sigma^2
"""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stepdistill.backbones.exact import GaussianMixture, ring
from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import (
    Backbone,
    Denoiser,
    Guided,
    PredictsEDM,
    PredictsEps,
    PredictsFlow,
    PredictsX0,
)
from stepdistill.discriminator import CriticTrunk, Head, Noisy, TeacherTrunk, build_head
from stepdistill.divergences import (
    forward_kl,
    jeffreys,
    jensen_shannon,
    neyman,
    reverse_kl,
    softened_reverse_kl,
    squared_hellinger,
)
from stepdistill.draws import Draws, key
from stepdistill.errors import UserError
from stepdistill.losses import (
    approximate_r1,
    dmd_gradient,
    gan_discriminator,
    gan_generator,
    kl_gradient,
    mean_flat,
    mean_pseudo_huber,
    pseudo_huber,
    pseudo_loss,
    squared_error,
    vsd_gradient,
)
from stepdistill.methods import (
    DMD2,
    ECT,
    Batch,
    DMD2Config,
    ECTConfig,
    Regression,
    RegressionConfig,
)
from stepdistill.plans import StepPlan, start
from stepdistill.roles import Role, full
from stepdistill.schedules import (
    EDMSchedule,
    FlowSchedule,
    TrigonometricSchedule,
    VPSchedule,
    expand_like,
)
from stepdistill.solvers import ddim_step, heun_step, sample
from stepdistill.times import LogNormalTimes, UniformTimes

SCHEDULES = {
    "vp": VPSchedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(3.0),
    "trigonometric": TrigonometricSchedule(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=[*SCHEDULES])
MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.0], [0.2, -1.2]], dtype=torch.float64)
STDS = torch.tensor([[0.5, 0.3], [0.4, 0.6], [0.7, 0.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def close(a, b, tolerance=1e-10):
    """Equal to ``tolerance``, absolute near zero and relative elsewhere."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


def noise(*shape, seed=0):
    """Unit Gaussian numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*numbers):
    return Conditioning({"class_labels": torch.tensor(numbers)})


def gaussian(schedule, mean, std):
    """The exact denoiser of N(mean, std^2) in one dimension."""
    mean, std = torch.tensor([[[mean]], [[std]]], dtype=torch.float64)
    return GaussianMixture(schedule, mean, std)


def mixture(schedule):
    """Three classes in two dimensions, one Gaussian each."""
    return GaussianMixture(schedule, MEANS, STDS, WEIGHTS)


def small_network(schedule, parametrization=None, seed=0, dim=3):
    """An MLP denoiser in float64 with random weights, tapped once."""
    torch.manual_seed(seed)
    network = MLP(dim, width=8, depth=1)
    nn.init.normal_(network.outward[-1].weight)
    return Denoiser(VectorBackbone(network), schedule, parametrization or PredictsFlow()).double()


# --- exact teachers ----------------------------------------------------------------------------


@every_schedule
def test_the_gaussian_denoiser_is_its_closed_form(schedule):
    """x0 = m + alpha S^2/v (x - alpha m), eps = sigma (x - alpha m)/v, s = -(x - alpha m)/v."""
    m, s = 0.7, 0.6
    x, t = 2 * noise(9, 1), torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    alpha, sigma = (expand_like(a, x) for a in schedule(t))
    v = alpha**2 * s**2 + sigma**2
    x0 = gaussian(schedule, m, s)(x, t, Conditioning.empty(9)).x0_hat
    close(x0, m + alpha * s**2 / v * (x - alpha * m))
    close(PredictsEps().output(x, x0, alpha, sigma), sigma * (x - alpha * m) / v)
    close((alpha * x0 - x) / sigma**2, -(x - alpha * m) / v, 1e-8)


@every_schedule
def test_the_mixtures_denoiser_is_the_posterior_mean(schedule):
    """x0_hat = integral x0 p(x0) N(x; alpha x0, sigma^2) / integral p(x0) N(...), by quadrature."""
    means, stds = torch.tensor([[-0.8], [0.9]]), torch.tensor([[0.3], [0.5]])
    exact = GaussianMixture(schedule, means, stds, torch.tensor([0.25, 0.75]))
    x0 = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    each = torch.exp(-0.5 * ((x0 - means.double()) / stds.double()) ** 2) / stds.double()
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64) @ each
    t = schedule.time(-2 * torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64).log())
    alpha, sigma = schedule(t)
    x = alpha[:, None] * torch.tensor([[-0.5], [0.1], [1.4]], dtype=torch.float64)
    likelihood = torch.exp(-0.5 * ((x - alpha[:, None] * x0) / sigma[:, None]) ** 2)
    posterior = prior * likelihood
    expected = (posterior * x0).sum(1) / posterior.sum(1)
    close(exact(x, t, Conditioning.empty(3)).x0_hat[:, 0], expected, 1e-6)


@every_schedule
@pytest.mark.parametrize("cond", [None, 0, 2, 3], ids=["no label", "class 0", "class 2", "null"])
def test_the_score_is_the_gradient_of_the_log_density(schedule, cond):
    """(alpha x0_hat - x)/sigma^2 = grad log p_t(x), by autograd, for mixture and classes."""
    exact, t = mixture(schedule), torch.linspace(0.2, 0.9, 8, dtype=torch.float64)
    condition = Conditioning.empty(8) if cond is None else labels(*[cond] * 8)
    x = noise(8, 2).requires_grad_()
    (score,) = torch.autograd.grad(exact.log_density(x, t, condition).sum(), x)
    alpha, sigma = (expand_like(a, x) for a in schedule(t))
    x0_hat = exact(x, t, condition).x0_hat
    close((alpha * x0_hat - x) / sigma**2, score, 1e-9)


@pytest.mark.parametrize("cond", [None, 1, 2], ids=["mixture", "class 1", "null"])
def test_the_density_integrates_to_1(cond):
    """integral p_t = 1 for the mixture, a class (weight 1, whatever its share) and null."""
    means, stds = torch.tensor([[-0.8], [0.9]]), torch.tensor([[0.3], [0.5]])
    exact = GaussianMixture(FlowSchedule(), means, stds, torch.tensor([0.2, 0.8]))
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    condition = Conditioning.empty(4001) if cond is None else labels(*[cond] * 4001)
    density = exact.log_density(x[:, None], torch.full((4001,), 0.3), condition).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-9)


@every_schedule
def test_a_class_is_one_gaussian_and_null_is_the_mixture(schedule):
    """Label k: the denoiser of component k alone. Label K: that of no label. Rows may differ."""
    exact, x = mixture(schedule), noise(5, 2)
    t = torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    together = exact(x, t, labels(2, 0, 3, 1, 3)).x0_hat
    empty = Conditioning.empty(5)
    alone = [
        GaussianMixture(schedule, MEANS[k : k + 1], STDS[k : k + 1])(x, t, empty).x0_hat
        for k in range(3)
    ]
    whole = exact(x, t, empty).x0_hat
    rows = [alone[2], alone[0], whole, alone[1], whole]
    close(together, torch.stack([row[i] for i, row in enumerate(rows)]))


@pytest.mark.parametrize(("a", "b"), itertools.product(SCHEDULES, repeat=2))
def test_another_schedule_at_the_same_snr_leaves_x0_hat_unchanged(a, b):
    """x0_hat depends on (x/alpha, sigma/alpha) alone: x_t rescaled and t moved give the same."""
    one, other = SCHEDULES[a], SCHEDULES[b]
    level = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)  # within every schedule
    y, cond = noise(4, 2), Conditioning.empty(4)
    x0 = []
    for schedule in (one, other):
        t = schedule.time(-2 * level.log())
        x0.append(mixture(schedule)(expand_like(schedule(t)[0], y) * y, t, cond).x0_hat)
    close(x0[0], x0[1], 1e-6)


def test_residuals_of_the_exact_denoiser_are_orthogonal_to_functions_of_x_t():
    """E[phi(x_t) (x0_hat - x0)] = 0 for x0 ~ q: with phi = mu_r - mu_f, SiD's identity."""
    schedule, weight, (z, eps) = FlowSchedule(), *quadrature()
    t = torch.full((len(z),), 0.4, dtype=torch.float64)
    x0 = 0.3 + 0.8 * z
    x_t, cond = schedule.add_noise(x0, t, eps), Conditioning.empty(len(z))
    mu_f = gaussian(schedule, 0.3, 0.8)(x_t, t, cond).x0_hat
    mu_r = gaussian(schedule, -0.5, 0.5)(x_t, t, cond).x0_hat
    for phi in (torch.ones_like(x_t), x_t, mu_r - mu_f):
        assert (weight * phi * (mu_f - x0)).sum().item() == pytest.approx(0.0, abs=1e-12)
    assert (weight * (mu_r - mu_f) ** 2).sum() > 0.1


def test_samples_of_a_component_are_m_plus_s_eps():
    """x0 = m_k + S_k eps in the dtype of eps; ring puts its means evenly on the circle."""
    eps, k = noise(6, 2), torch.tensor([0, 1, 2, 2, 1, 0])
    x0 = mixture(FlowSchedule()).sample(eps, k)
    close(x0, MEANS[k] + STDS[k] * eps)
    assert mixture(FlowSchedule()).sample(eps.float(), k).dtype == torch.float32
    teacher = ring(FlowSchedule(), modes=6, radius=3.0, std=0.1)
    close(teacher.means.norm(dim=1), torch.full((6,), 3.0))
    gaps = (teacher.means - teacher.means.roll(1, 0)).norm(dim=1)
    close(gaps, torch.full((6,), 3.0))  # a hexagon's side is its radius
    assert teacher.num_classes == 6


# --- distribution matching ---------------------------------------------------------------------

M, S, A, B = 0.5, 0.7, -0.3, 1.2  # teacher N(M, S^2), student A + B z
MATCHING = {"vp": 0.35, "edm": 0.42, "flow": 0.3, "trigonometric": 0.5}  # schedule -> time


def quadrature(n=12):
    """Weights (n^2, 1) and nodes (z, eps) of E over two N(0, 1), exact for polynomials < 2 n."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    weights = weights / weights.sum()
    z, eps = np.meshgrid(nodes, nodes, indexing="ij")
    columns = [np.outer(weights, weights), z, eps]
    weight, z, eps = (torch.from_numpy(c.reshape(-1, 1)) for c in columns)
    return weight, (z, eps)


def predictions(name, z, eps, a=A, b=B):
    """x0, the teacher's and the critic's exact x0 at its x_t, and alpha, sigma (B,)."""
    schedule = SCHEDULES[name]
    t = torch.full((len(z),), MATCHING[name], dtype=torch.float64)
    x0, cond = a + b * z, Conditioning.empty(len(z))
    x_t = schedule.add_noise(x0, t, eps)
    x0_real = gaussian(schedule, M, S)(x_t, t, cond).x0_hat
    x0_fake = gaussian(schedule, a, b)(x_t, t, cond).x0_hat
    return x0, x0_real, x0_fake, *schedule(t)


def exact_gradient(name, a=A, b=B):
    """d KL(q_t || p_t)/da = alpha^2 (a - m)/v and /db = alpha^2 b (1/v - 1/w)."""
    alpha, sigma = (x.item() for x in SCHEDULES[name](_time(name)))
    v, w = alpha**2 * S**2 + sigma**2, alpha**2 * b**2 + sigma**2
    return alpha**2 * (a - M) / v, alpha**2 * b * (1 / v - 1 / w), alpha, sigma


def _time(name):
    return torch.tensor([MATCHING[name]], dtype=torch.float64)


def unnormalised_dmd(x0, x0_real, x0_fake, alpha, sigma):
    """dmd_gradient times its own normaliser |x0 - x0_real|: x0_fake - x0_real."""
    return dmd_gradient(x0, x0_real, x0_fake) * (x0 - x0_real).abs()


# weight -> (its gradient, what it multiplies the exact KL's by)
POLICIES = {
    "kl": (lambda x0, *rest: kl_gradient(*rest), lambda alpha, sigma: 1.0),
    "vsd": (lambda x0, *rest: vsd_gradient(*rest), lambda alpha, sigma: sigma**3 / alpha),
    "dmd": (unnormalised_dmd, lambda alpha, sigma: sigma**2 / alpha**2),
}
every_policy = pytest.mark.parametrize("policy", POLICIES)
every_matching = pytest.mark.parametrize("name", MATCHING)


@every_matching
def test_the_closed_form_is_the_gradient_of_the_kl(name):
    """KL(q_t || p_t) = (log(v/w) + (w + alpha^2 (a - m)^2)/v - 1)/2, by autograd in a and b."""
    d_a, d_b, alpha, sigma = exact_gradient(name)
    a, b = torch.tensor([A, B], dtype=torch.float64).requires_grad_()
    v, w = alpha**2 * S**2 + sigma**2, alpha**2 * b**2 + sigma**2
    kl = 0.5 * (torch.log(v / w) + (w + alpha**2 * (a - M) ** 2) / v - 1)
    assert [g.item() for g in torch.autograd.grad(kl, (a, b))] == pytest.approx([d_a, d_b])


@every_policy
@every_matching
def test_matching_descends_the_reverse_kl_exactly(name, policy):
    """E[weight (x0_fake - x0_real) dx0/d(a, b)] = factor * grad KL, by exact quadrature.

    Factors: kl 1, vsd sigma^3/alpha, dmd without its normaliser sigma^2/alpha^2.
    """
    weight, (z, eps) = quadrature()
    gradient, factor = POLICIES[policy]
    g = gradient(*predictions(name, z, eps))
    d_a, d_b, alpha, sigma = exact_gradient(name)
    scale = factor(alpha, sigma)
    assert (weight * g).sum().item() == pytest.approx(scale * d_a, rel=1e-9)
    assert (weight * g * z).sum().item() == pytest.approx(scale * d_b, rel=1e-9)


@every_policy
@every_matching
def test_100_000_draws_average_to_the_gradient_of_the_reverse_kl(name, policy):
    """The same from random draws: within 4 standard errors, in a and in b."""
    n = 100_000
    z, eps = noise(2, n, 1, seed=7)
    gradient, factor = POLICIES[policy]
    g = gradient(*predictions(name, z, eps))
    d_a, d_b, alpha, sigma = exact_gradient(name)
    scale = factor(alpha, sigma)
    for each, expected in ((g, scale * d_a), (g * z, scale * d_b)):
        assert abs(each.mean().item() - expected) < 4 * each.std().item() / n**0.5


@every_matching
def test_the_kl_gradient_is_alpha_times_the_difference_of_scores(name):
    """kl = alpha (s_fake - s_real), scores by autograd; vsd = sigma^2 (eps_real - eps_fake)."""
    schedule, z, eps = SCHEDULES[name], noise(50, 1), noise(50, 1, seed=1)
    x0, x0_real, x0_fake, alpha, sigma = predictions(name, z, eps)
    t, cond = _time(name).expand(50), Conditioning.empty(50)
    x_t = schedule.add_noise(x0, t, eps).requires_grad_()
    s_real, s_fake = (
        torch.autograd.grad(gaussian(schedule, *law).log_density(x_t, t, cond).sum(), x_t)[0]
        for law in ((M, S), (A, B))
    )
    close(kl_gradient(x0_real, x0_fake, alpha, sigma), alpha[:, None] * (s_fake - s_real), 1e-8)
    by_eps = sigma[:, None] ** 2 * (-sigma[:, None]) * (s_real - s_fake)
    close(vsd_gradient(x0_real, x0_fake, alpha, sigma), by_eps, 1e-8)


@every_policy
@every_matching
def test_a_critic_that_equals_the_teacher_gives_exactly_0(name, policy):
    """mu_fake = mu_real (a = m, b = S): every sample's gradient is 0, not just their mean."""
    z, eps = noise(2, 1000, 1)
    x0, x0_real, x0_fake, alpha, sigma = predictions(name, z, eps, a=M, b=S)
    assert torch.equal(x0_real, x0_fake)
    g = POLICIES[policy][0](x0, x0_real, x0_fake, alpha, sigma)
    assert torch.equal(g, torch.zeros_like(g))
    assert torch.equal(dmd_gradient(x0, x0_real, x0_fake), torch.zeros_like(g))


@every_matching
def test_the_true_noise_as_critic_loses_the_entropy(name):
    """SDS: eps_fake = eps, that is x0_fake = x0. d/da is right, d/db is alpha^2 b/v: b -> 0.

    The term -alpha^2 b/w, which keeps the variance up, is what a learned critic adds.
    """
    weight, (z, eps) = quadrature()
    x0, x0_real, _, alpha_t, sigma_t = predictions(name, z, eps)
    g = kl_gradient(x0_real, x0, alpha_t, sigma_t)
    d_a, d_b, alpha, sigma = exact_gradient(name)
    v, w = alpha**2 * S**2 + sigma**2, alpha**2 * B**2 + sigma**2
    assert (weight * g).sum().item() == pytest.approx(d_a, rel=1e-9)
    in_b = (weight * g * z).sum().item()
    assert in_b == pytest.approx(alpha**2 * B / v, rel=1e-9)
    assert in_b - alpha**2 * B / w == pytest.approx(d_b, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_dmd2_with_a_critic_that_never_learned_does_not_move(steps):
    """Critic = teacher's weights, no guidance, no GAN: every gradient of the generator is 0.

    With guidance or another critic it is not, so the test can see a generator that moves.
    """
    schedule = FlowSchedule()
    teacher = small_network(schedule).requires_grad_(False).eval()
    null = labels(0)

    def gradient(critic, **options):
        generator = full("generator", small_network(schedule, seed=1))
        config = DMD2Config(gan_weight=0.0, **options)
        plan = StepPlan.uniform(steps)

        def guide(denoiser, scale):
            return Guided(denoiser, scale, null)

        method = DMD2(generator, critic, teacher, plan, config, sample_shape=(3,), guide=guide)
        batch = Batch(None, Conditioning.empty(16), Double(0, 0, "generator"))
        return torch.autograd.grad(
            method.generator_loss(batch).value, list(generator.trainable().values())
        )

    assert all((g == 0).all() for g in gradient(full("critic", teacher)))
    other = full("critic", small_network(schedule, seed=2))
    assert any((g != 0).any() for g in gradient(other))


class Double(Draws):
    """Draws in float64, for methods that ask for the default dtype."""

    def normal(self, *shape, dtype=torch.float64):
        return super().normal(*shape, dtype=torch.float64)


# --- the normaliser ----------------------------------------------------------------------------


def triple(count=6, shape=(2, 4, 4)):
    """x0, x0_real, x0_fake of ``count`` samples."""
    return noise(3, count, *shape)


def test_the_dmd_gradient_is_its_formula():
    """(mu_f - mu_r)/mean_{C,H,W} |x - mu_r|, sample by sample (DMD, Eq. 8)."""
    x0, real, fake = triple()
    g = dmd_gradient(x0, real, fake)
    for i in range(6):
        close(g[i], (fake[i] - real[i]) / (x0[i] - real[i]).abs().mean())


@pytest.mark.parametrize("k", [1e-2, 1.0, 50.0])
def test_the_normaliser_makes_each_sample_scale_free(k):
    """Multiplying mu_f - mu_r and x - mu_r of one sample by k leaves all gradients unchanged."""
    x0, real, fake = triple()
    g = dmd_gradient(x0, real, fake)
    factor = torch.ones(6, 1, 1, 1, dtype=torch.float64)
    factor[2] = k
    scaled = dmd_gradient(real + factor * (x0 - real), real, real + factor * (fake - real))
    close(scaled, g)


def test_one_bad_sample_does_not_touch_the_others():
    """The normaliser is per sample: rows 0 and 2 are bit-equal whatever row 1 is."""
    x0, real, fake = triple(3)
    g = dmd_gradient(x0, real, fake)
    for bad in (1e6, math.inf, math.nan):
        x0[1] = bad
        again = dmd_gradient(x0, real, fake)
        assert torch.equal(again[0], g[0])
        assert torch.equal(again[2], g[2])


def test_a_sample_that_the_teacher_returns_unchanged_is_finite():
    """x0 = mu_r: the normaliser is clamped at 1e-5, never divided by 0."""
    _, real, fake = triple(2)
    g = dmd_gradient(real, real, fake)
    assert g.isfinite().all()
    close(g, (fake - real) / 1e-5)


# --- losses ------------------------------------------------------------------------------------


def test_means_and_squares_are_per_sample():
    """mean_flat: (B, *) -> (B,); squared_error = mean (x - y)^2 of each sample."""
    x, y, _ = triple()
    close(mean_flat(x), torch.stack([row.mean() for row in x]))
    close(
        squared_error(x, y), torch.stack([((a - b) ** 2).mean() for a, b in zip(x, y, strict=True)])
    )
    assert mean_flat(torch.arange(3.0)[:, None]).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("c", [0.0, 0.03, 2.0])
def test_pseudo_huber_is_its_formula(c):
    """sqrt(|x - y|^2 + c^2) - c with the l2 norm over a sample; c = 0 is the norm itself."""
    x, y, _ = triple()
    norm = (x - y).flatten(1).norm(dim=1)
    close(pseudo_huber(x, y, c), (norm**2 + c**2).sqrt() - c)
    if c == 0:
        close(pseudo_huber(x, y), norm)


def test_the_mean_pseudo_huber_is_icts_over_the_root_of_the_dimensions():
    """With iCT's c = 0.00054 sqrt(d); its gradient does not shrink with d, as the norm's does."""
    for d in (3, 300):
        x, y = noise(5, d), noise(5, d, seed=1)
        close(mean_pseudo_huber(x, y), pseudo_huber(x, y, 0.00054 * d**0.5) / d**0.5)
        x.requires_grad_()
        (g,) = torch.autograd.grad(mean_pseudo_huber(x, y).sum(), x)
        close(d**2 * (g**2).mean(1), torch.ones(5), 1e-5)
        same = mean_pseudo_huber(y, y)
        close(same, torch.zeros(5))


def test_pseudo_huber_is_quadratic_near_0_and_linear_far_out():
    """d -> |d|^2/(2 c) for |d| << c and |d| - c for |d| >> c."""
    d, zero = torch.tensor([[1e-4], [1e4]], dtype=torch.float64), torch.zeros(2, 1)
    near, far = pseudo_huber(d, zero, 0.1).tolist()
    assert near == pytest.approx(1e-8 / 0.2, rel=1e-5)
    assert far == pytest.approx(1e4 - 0.1, rel=1e-9)


@pytest.mark.parametrize("c", [0.0, 0.03])
def test_equal_samples_have_gradient_0_and_do_not_hurt_the_others(c):
    """At x = y the norm's gradient is taken as 0, not NaN; other rows have (x - y)/|x - y|."""
    x, y, _ = triple(3)
    x[1] = y[1]
    x.requires_grad_()
    (g,) = torch.autograd.grad(pseudo_huber(x, y, c).sum(), x)
    assert torch.equal(g[1], torch.zeros_like(g[1]))
    norm = ((x - y)[0].square().sum() + c**2).sqrt()
    close(g[0], ((x - y)[0] / norm).detach())
    assert pseudo_huber(x, y, c)[1].item() == 0.0


def test_the_pseudo_loss_injects_its_gradient():
    """L = mean (x - sg[x - g])^2/2: dL/dx0 = g/numel of the batch; and L is |g|^2/2 meaned."""
    x0, g, _ = triple()
    x0.requires_grad_()
    loss = pseudo_loss(x0, g)
    assert loss.shape == (6,)
    close(loss.detach(), 0.5 * mean_flat(g**2))
    (injected,) = torch.autograd.grad(loss.mean(), x0)
    close(injected, g / x0.numel())


def test_the_pseudo_loss_takes_its_gradient_as_a_constant():
    """No gradient enters g, even where it depends on x0."""
    x0 = triple()[0].requires_grad_()
    g = x0**2
    (injected,) = torch.autograd.grad(pseudo_loss(x0, g).mean(), x0)
    close(injected, (g / x0.numel()).detach())


# --- f-divergences -----------------------------------------------------------------------------

# name -> (weight function h of log r, f of r), D_f = E_q f(p/q)
DIVERGENCES = {
    "reverse_kl": (reverse_kl, lambda r: -r.log()),
    "forward_kl": (forward_kl, lambda r: r * r.log()),
    "jensen_shannon": (
        jensen_shannon,
        lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    ),
    "softened_reverse_kl": (softened_reverse_kl, lambda r: (r + 1) * ((r + 1) / (2 * r)).log()),
    "squared_hellinger": (squared_hellinger, lambda r: (r.sqrt() - 1) ** 2),
    "jeffreys": (jeffreys, lambda r: (r - 1) * r.log()),
    "neyman": (neyman, lambda r: (r - 1) ** 2 / r),
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
GRID = torch.linspace(-14, 14, 8001, dtype=torch.float64)
LAW = {"m": 0.4, "s": 0.9, "a": -0.2, "b": 1.1, "alpha": 0.8, "sigma": 0.6}


def densities(a, b, m=LAW["m"], s=LAW["s"], alpha=LAW["alpha"], sigma=LAW["sigma"]):
    """q_t on GRID, log r = log p_t/q_t there, and w."""
    v, w = alpha**2 * s**2 + sigma**2, alpha**2 * b**2 + sigma**2
    log_p = -0.5 * ((GRID - alpha * m) ** 2 / v + math.log(2 * math.pi * v))
    log_q = -0.5 * ((GRID - alpha * a) ** 2 / w + math.log(2 * math.pi * w))
    return log_q.exp(), log_p - log_q, w


def expectation(q, values):
    """E_q[values], by the trapezoidal rule: spectrally exact for Gaussians."""
    return torch.trapezoid(q * values, GRID).item()


@every_divergence
def test_h_is_r_squared_times_the_second_derivative_of_f(divergence):
    """h(r) = r^2 f''(r), by differentiating f twice; f(1) = 0 and h > 0."""
    h, f = DIVERGENCES[divergence]
    r = torch.logspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    close(h(r.log()).detach(), (r**2 * second).detach(), 1e-8)
    assert f(torch.ones(1)).item() == pytest.approx(0.0, abs=1e-7)
    assert (h(r.log()) > 0).all()


@every_divergence
def test_h_weighs_the_reverse_kl_gradient_into_that_of_the_divergence(divergence):
    """grad D_f(p_t || q_t) = E_q[h(r) alpha (s_f - s_r) dx/d(a, b)], against finite differences.

    Given x_t, dx/da = 1 and E[dx/db] = E[z | x_t] = alpha b (x_t - alpha a)/w.
    """
    h, f = DIVERGENCES[divergence]
    a, b, alpha, sigma = (LAW[k] for k in ("a", "b", "alpha", "sigma"))
    q, log_r, w = densities(a, b)
    t = FlowSchedule().time(torch.tensor([2 * math.log(alpha / sigma)], dtype=torch.float64))
    schedule, x = FlowSchedule(), GRID[:, None]
    scale = schedule(t)[0] / alpha  # the exact denoisers stand on a flow schedule: rescale x
    times, cond = t.expand(len(x)), Conditioning.empty(len(x))
    x0_real, x0_fake = (
        gaussian(schedule, mean, std)(scale * x, times, cond).x0_hat
        for mean, std in ((LAW["m"], LAW["s"]), (a, b))
    )
    alphas, sigmas = (torch.full((len(x),), value).double() for value in (alpha, sigma))
    g = kl_gradient(x0_real, x0_fake, alphas, sigmas)[:, 0]
    weighted = h(log_r) * g
    in_a = expectation(q, weighted)
    in_b = expectation(q, weighted * alpha * b * (GRID - alpha * a) / w)

    def value(a, b):
        q, log_r, _ = densities(a, b)
        return expectation(q, f(log_r.exp()))

    step = 1e-4
    d_a = (value(a + step, b) - value(a - step, b)) / (2 * step)
    d_b = (value(a, b + step) - value(a, b - step)) / (2 * step)
    assert (in_a, in_b) == pytest.approx((d_a, d_b), rel=1e-5)
    assert abs(d_a) > 0.01
    assert abs(d_b) > 0.01


def test_the_forward_kl_has_a_closed_form():
    """d KL(p_t || q_t)/da = alpha^2 (a - m)/w: the reverse KL's with w in the place of v."""
    a, b, m, alpha = (LAW[k] for k in ("a", "b", "m", "alpha"))
    q, log_r, w = densities(a, b)
    v = alpha**2 * LAW["s"] ** 2 + LAW["sigma"] ** 2
    score_gap = -(GRID - alpha * a) / w + (GRID - alpha * m) / v
    in_a = expectation(q, forward_kl(log_r) * alpha * score_gap)
    assert in_a == pytest.approx(alpha**2 * (a - m) / w, rel=1e-9)


def test_pointwise_identities_of_the_weights():
    """h_js + h_srkl = 1, h_js(1/r) = h_srkl(r), h_jeffreys = h_rkl + h_kl, h_rkl = 1 (DMD)."""
    log_r = torch.linspace(-8, 8, 101, dtype=torch.float64)
    close(jensen_shannon(log_r) + softened_reverse_kl(log_r), torch.ones(101))
    close(jensen_shannon(-log_r), softened_reverse_kl(log_r))
    close(jeffreys(log_r), reverse_kl(log_r) + forward_kl(log_r))
    assert torch.equal(reverse_kl(log_r), torch.ones(101).double())
    close(4 * squared_hellinger(log_r) ** 2, forward_kl(log_r))
    close(neyman(log_r) * forward_kl(log_r), 2 * torch.ones(101))


def test_moments_of_the_weights():
    """E_q r = 1, E_q h_jeffreys = 2, and E_q sqrt(r) is the Bhattacharyya coefficient

    sqrt(2 sqrt(v w)/(v + w)) exp(-alpha^2 (a - m)^2/(4 (v + w))).
    """
    a, b, m, alpha = (LAW[k] for k in ("a", "b", "m", "alpha"))
    q, log_r, w = densities(a, b)
    v = alpha**2 * LAW["s"] ** 2 + LAW["sigma"] ** 2
    assert expectation(q, forward_kl(log_r)) == pytest.approx(1.0, rel=1e-9)
    assert expectation(q, jeffreys(log_r)) == pytest.approx(2.0, rel=1e-9)
    overlap = (2 * (v * w) ** 0.5 / (v + w)) ** 0.5
    overlap *= math.exp(-(alpha**2) * (a - m) ** 2 / (4 * (v + w)))
    assert expectation(q, 2 * squared_hellinger(log_r)) == pytest.approx(overlap, rel=1e-9)


# --- adversarial -------------------------------------------------------------------------------


def test_gan_losses_at_logit_0():
    """L_D = 2 log 2, L_G = log 2, dL_G/dlogit = -1/2, dL_D/d(fake, real) = (1/2, -1/2)."""
    fake, real = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    close(gan_generator(fake).detach(), torch.full((3,), math.log(2), dtype=torch.float64))
    close(
        gan_discriminator(fake, real).detach(),
        torch.full((3,), 2 * math.log(2), dtype=torch.float64),
    )
    (g,) = torch.autograd.grad(gan_generator(fake).sum(), fake)
    assert g.tolist() == [-0.5] * 3
    g_fake, g_real = torch.autograd.grad(gan_discriminator(fake, real).sum(), (fake, real))
    assert (g_fake.tolist(), g_real.tolist()) == ([0.5] * 3, [-0.5] * 3)


def test_gan_losses_are_logistic_and_do_not_saturate():
    """L_G = -log sigmoid(D), L_D = -log(1 - sigmoid(D_fake)) - log sigmoid(D_real); slope -> -1."""
    d, e = torch.linspace(-9, 9, 37, dtype=torch.float64), torch.linspace(5, -4, 37).double()
    close(gan_generator(d), -torch.sigmoid(d).log())
    close(gan_discriminator(d, e), -torch.sigmoid(-d).log() - torch.sigmoid(e).log())
    lost = torch.tensor([-60.0], requires_grad=True)  # a fake that is surely told
    (g,) = torch.autograd.grad(gan_generator(lost).sum(), lost)
    assert g.item() == pytest.approx(-1.0)


def test_the_logistic_optimum_is_the_log_density_ratio():
    """argmin E_q softplus(D) + E_p softplus(-D) over D = c0 + c1 x + c2 x^2 is log p_t/q_t.

    c2 = (1/w - 1/v)/2, c1 = mu_p/v - mu_q/w, c0 = mu_q^2/(2 w) - mu_p^2/(2 v) - log(v/w)/2.
    """
    mu_p, v, mu_q, w = 0.4, 0.8, -0.2, 1.1
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    z, weight = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    real, fake = mu_p + v**0.5 * z, mu_q + w**0.5 * z
    c = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    powers = [torch.stack([torch.ones_like(x), x, x**2]) for x in (fake, real)]
    for _ in range(20):  # Newton's method
        loss = (weight * gan_discriminator(c @ powers[0], c @ powers[1])).sum()
        (g,) = torch.autograd.grad(loss, c, create_graph=True)
        hessian = torch.stack(
            [torch.autograd.grad(g[i], c, retain_graph=True)[0] for i in range(3)]
        )
        with torch.no_grad():
            c -= torch.linalg.solve(hessian, g)
    expected = [
        mu_q**2 / (2 * w) - mu_p**2 / (2 * v) - 0.5 * math.log(v / w),
        mu_p / v - mu_q / w,
        0.5 * (1 / w - 1 / v),
    ]
    assert c.tolist() == pytest.approx(expected, abs=1e-5)


def test_approximate_r1_is_the_squared_gradient_of_a_linear_discriminator():
    """E (D(x) - D(x + s eps))^2 = s^2 |grad D|^2 for D = g x: exactly, along unit axes."""
    g, x, s = noise(3), noise(5, 3, seed=1), 0.1
    pushed = [x + s * axis for axis in torch.eye(3).double()]
    total = sum(approximate_r1(x @ g, y @ g) for y in pushed)
    close(total, (s**2 * g.square().sum()).expand(5))
    close(approximate_r1(x @ g, x @ g), torch.zeros(5))


# --- ECT ---------------------------------------------------------------------------------------

LEVELS = torch.logspace(-2.3, 1.9, 40, dtype=torch.float64)


def ect(config=None, denoiser=None, schedule=None):
    schedule = schedule or EDMSchedule()
    parametrization = PredictsEDM(boundary=0.002)
    denoiser = denoiser or small_network(schedule, parametrization)
    return ECT(full("generator", denoiser), StepPlan(), config or ECTConfig())


@pytest.mark.parametrize("stage", range(9))
def test_ects_earlier_time_is_its_formula(stage):
    """r = max(0, t (1 - q^-(stage+1) (1 + 8 sigmoid(-t)))), always 0 <= r < t (ECT, Eq. 12)."""
    t, r = ect().pair(LEVELS, 10_000 * stage)
    assert torch.equal(t, LEVELS)
    shrink = 1 - (1 + 8 * torch.sigmoid(-LEVELS)) / 2.0 ** (stage + 1)
    close(r, (LEVELS * shrink).clamp(min=0))
    assert (r < t).all()
    assert (r >= 0).all()


def test_ect_begins_as_diffusion_training():
    """Stage 0: n(t)/q >= 1 for small t, so r = 0 exactly, and the target is x0 itself."""
    _, r = ect().pair(LEVELS, 0)
    small = torch.sigmoid(-LEVELS) > 1 / 8
    assert (r[small] == 0).all()
    assert small.sum() > 20
    assert (r[~small] > 0).all()


@pytest.mark.parametrize("q", [2.0, 4.0])
def test_the_gap_shrinks_by_q_each_stage_until_the_last(q):
    """t - r = t n(t)/q^(stage+1) where r > 0: each stage divides it by q; the last one stays."""
    method = ect(ECTConfig(q=q, double_every=100, max_stage=5))
    gaps = [LEVELS - method.pair(LEVELS, 100 * stage)[1] for stage in range(7)]
    for stage in range(4, 5):
        close(gaps[stage] / gaps[stage + 1], torch.full((40,), q))
    assert torch.equal(gaps[5], gaps[6])
    assert torch.equal(gaps[3], LEVELS - method.pair(LEVELS, 399)[1])
    assert not torch.equal(gaps[4], gaps[3])


class Spy(nn.Module):
    """A denoiser that keeps (x_t, t, x0_hat) of its calls."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.calls = denoiser, []

    @property
    def schedule(self):
        return self.denoiser.schedule

    def forward(self, x_t, t, cond, *, features=False):
        prediction = self.denoiser(x_t, t, cond, features=features)
        self.calls.append((x_t, t, prediction.x0_hat))
        return prediction


@pytest.mark.parametrize("huber_c", [0.0, 0.03])
@pytest.mark.parametrize("name", ["edm", "flow"])
def test_ects_loss_is_its_formula(name, huber_c):
    """mean of (|f(x_t) - sg f(x_r)|_c)/(t - r): one noise for both, target without gradient."""
    schedule = SCHEDULES[name]
    spy = Spy(small_network(schedule, PredictsEDM()))
    method = ect(ECTConfig(huber_c=huber_c), spy, schedule)
    x0 = noise(32, 3)
    loss = method.generator_loss(Batch(x0, Conditioning.empty(32), Draws(0, 40_000, "generator")))
    (x_r, r, target), (x_t, t, x0_hat) = method.generator.module.calls
    levels = []
    for x, time in ((x_t, t), (x_r, r)):
        alpha, sigma = (expand_like(a, x) for a in schedule(time))
        levels.append((sigma / alpha)[:, 0])
        close(
            (x_t - expand_like(schedule(t)[0], x0) * x0) / expand_like(schedule(t)[1], x0),
            (x - alpha * x0) / sigma,
            1e-6,
        )
    close(method.pair(levels[0], 40_000)[1], levels[1], 1e-6)
    norm = (((x0_hat - target) ** 2).sum(1) + huber_c**2).sqrt() - huber_c
    close(loss.value.detach(), (norm / (levels[0] - levels[1])).mean().detach(), 1e-6)
    assert not target.requires_grad
    assert x0_hat.requires_grad


def test_ects_first_target_is_the_sample_itself():
    """r = 0: the loss is mean |f(x_t) - x0|/t, denoising, whatever the network says at r."""
    spy = Spy(small_network(EDMSchedule(), PredictsEDM()))
    method = ect(ECTConfig(noise_mean=-3.0, noise_std=0.2), spy)
    x0 = noise(32, 3)
    loss = method.generator_loss(Batch(x0, Conditioning.empty(32), Draws(0, 0, "generator")))
    _, (_, t, x0_hat) = method.generator.module.calls
    level = EDMSchedule()(t)[1]
    close(loss.value.detach(), ((x0_hat - x0).norm(dim=1) / level).mean().detach(), 1e-9)


@pytest.mark.parametrize("iteration", [0, 20_000, 10**6])
def test_ects_loss_of_the_consistency_function_of_a_point_is_0(iteration):
    """Data at one point m: f = m is the same along every trajectory, so the loss is 0."""
    method = ect(denoiser=gaussian(EDMSchedule(), 0.6, 0.0))
    x0 = torch.full((16, 1), 0.6, dtype=torch.float64)
    batch = Batch(x0, Conditioning.empty(16), Draws(0, iteration, "generator"))
    assert method.generator_loss(batch).value.item() == pytest.approx(0.0, abs=1e-12)
    moved = batch._replace(x0=x0 + 0.1)  # and not 0 for other data, at least while r = 0
    assert iteration > 0 or method.generator_loss(moved).value.item() > 0.01


def test_both_sides_of_ect_drop_the_same_units():
    """Dropout of f(x_t) and of f(x_r) is one mask, and another one in the next loss."""

    class Dropping(Backbone):
        def __init__(self):
            super().__init__(nn.Dropout(0.5))
            self.weight, self.masks = nn.Parameter(torch.ones(1, dtype=torch.float64)), []

        def forward(self, x, timestep, cond):
            mask = self.network(torch.ones_like(x))
            self.masks.append(mask)
            return mask * x * self.weight

    method = ect(denoiser=Denoiser(Dropping(), EDMSchedule(), PredictsX0()))
    for iteration in range(2):
        batch = Batch(noise(32, 3), Conditioning.empty(32), Draws(0, iteration, "generator"))
        method.generator_loss(batch)
    first_r, first_t, second_r, second_t = method.generator.module.backbone.masks
    assert torch.equal(first_r, first_t)
    assert torch.equal(second_r, second_t)
    assert not torch.equal(first_t, second_t)
    assert 0.0 in first_t.tolist()[0] + first_t.tolist()[1] + first_t.tolist()[2]


def test_ects_noise_levels_are_log_normal():
    """ln t ~ N(-1.1, 2^2), within the schedule's range: mean, spread and ends of 20,000 draws."""
    spy = Spy(gaussian(EDMSchedule(), 0.0, 0.5))
    method = ect(denoiser=spy)
    x0 = torch.zeros(20_000, 1, dtype=torch.float64)
    method.generator_loss(Batch(x0, Conditioning.empty(20_000), Draws(0, 0, "generator")))
    log_level = EDMSchedule()(method.generator.module.calls[1][1])[1].log()
    assert log_level.median().item() == pytest.approx(-1.1, abs=0.07)
    inner = log_level.quantile(torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    assert inner.diff().item() / 2 == pytest.approx(2.0, abs=0.06)
    assert log_level.max() <= math.log(80.0) + 1e-9
    assert log_level.min() >= math.log(0.004) - 1e-9


# --- discriminators ----------------------------------------------------------------------------


def noisy(seed, count=4):
    """A batch of noisy samples."""
    t = torch.linspace(0.2, 0.9, count, dtype=torch.float64)
    return Noisy(noise(count, 3, seed=seed), t, Conditioning.empty(count))


def judges(kind):
    """A discriminator of the ``kind``, the critic and the teacher (which could learn, if let)."""
    torch.manual_seed(3)
    head = Role("head", Head([(8,)], 6).double())
    teacher = small_network(FlowSchedule(), seed=1)
    critic = full("critic", small_network(FlowSchedule(), seed=2))
    return (CriticTrunk(head) if kind == "critic" else TeacherTrunk(head, teacher)), critic, teacher


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


every_trunk = pytest.mark.parametrize("kind", ["critic", "teacher"])


@every_trunk
def test_learning_gives_gradients_to_critic_and_head(kind):
    """Every parameter of the critic and of the head learns, and no teacher's does.

    With the critic as trunk the logits reach it too: up to its tap, and the rest gets exact zeros
    rather than None, which DDP would refuse.
    """
    gan, critic, teacher = judges(kind)
    fake, real = noisy(1), noisy(2)
    x0_hat, (logits_fake, logits_real) = gan.learn(critic, fake, (fake, real))
    (gan_discriminator(logits_fake, logits_real).sum() + x0_hat.square().sum()).backward()
    assert all(g is not None for g in gradients(critic.module).values())
    assert all(g is not None and g.abs().max() > 0 for g in gradients(gan.head.module).values())
    assert all(g is None for g in gradients(teacher).values())
    critic.module.zero_grad(set_to_none=True)
    _, logits = gan.learn(critic, fake, (fake, real))
    sum(logits).sum().backward()
    of_critic = gradients(critic.module)
    if kind == "teacher":
        assert all(g is None for g in of_critic.values())
    else:
        reached = {name for name, g in of_critic.items() if g is not None and g.abs().max() > 0}
        assert reached == {name for name in of_critic if "outward" not in name}
        assert all(g is not None for g in of_critic.values())


@every_trunk
def test_judging_gives_gradients_to_the_inputs_only(kind):
    """judge: d logits/d x_t is there, x0_hat is detached, and no parameter gets a gradient.

    The teacher is handed over frozen; critic and head are frozen by their views.
    """
    gan, critic, teacher = judges(kind)
    teacher.requires_grad_(False)
    fake = noisy(1)
    fake.x_t.requires_grad_()
    x0_hat, x0_real, logits = gan.judge(critic, fake)
    gan_generator(logits).sum().backward()
    assert not x0_hat.requires_grad
    if kind == "teacher":  # its pass is the matching's too
        assert not x0_real.requires_grad
        close(x0_real, teacher(*fake).x0_hat.detach())
    assert fake.x_t.grad.abs().min() > 0
    for module in (critic.module, gan.head.module, teacher):
        assert all(g is None for g in gradients(module).values())
    close(x0_hat, critic(*fake).x0_hat.detach())
    trunk = critic.module if kind == "critic" else teacher
    close(logits, gan.head(trunk(*fake, features=True).features))
    close(logits, gan.logits(critic, fake))
    slope = torch.autograd.functional.jacobian(
        lambda x: gan.judge(critic, fake._replace(x_t=x))[2].sum(), fake.x_t.detach()
    )
    sigmoid = torch.sigmoid(-logits.detach())[:, None]
    rows = slope * -sigmoid  # each logit depends on its own row
    close(fake.x_t.grad, rows)


@every_trunk
def test_sharing_a_pass_equals_separate_passes(kind):
    """learn(fake, (fake, real)) = denoise fake, judge fake, judge real apart: values, gradients."""
    gan, critic, teacher = judges(kind)
    fake, real = noisy(1), noisy(2)
    twin = Noisy(*fake)  # the same numbers, but another object: not shared
    trunk = critic if kind == "critic" else teacher
    parameters = [*critic.module.parameters(), *gan.head.module.parameters()]
    outcomes = []
    for shared in (fake, twin):
        x0_hat, (logits_fake, logits_real) = gan.learn(critic, fake, (shared, real))
        outcomes.append((x0_hat, logits_fake, logits_real))
    outcomes.append(
        (
            critic(*fake).x0_hat,
            gan.head(trunk(*fake, features=True).features),
            gan.head(trunk(*real, features=True).features),
        )
    )
    losses = [
        x0_hat.square().sum() + gan_discriminator(logits_fake, logits_real).sum()
        for x0_hat, logits_fake, logits_real in outcomes
    ]
    grads = [torch.autograd.grad(loss, parameters) for loss in losses]
    for other in (1, 2):
        for a, b in zip(outcomes[0], outcomes[other], strict=True):
            close(a, b)
        for a, b in zip(grads[0], grads[other], strict=True):
            close(a, b)


def test_a_shared_batch_is_passed_once():
    """The critic sees 2 B samples when the denoised batch is judged too, 3 B when it is not."""
    gan, critic, _ = judges("critic")
    spy = Spy(critic.module)
    counted, fake, real = Role("critic", spy), noisy(1), noisy(2)
    gan.learn(counted, fake, (fake, real))
    gan.learn(counted, noisy(3), (fake, real))
    assert [len(x_t) for x_t, _, _ in spy.calls] == [8, 12]


@every_trunk
@pytest.mark.parametrize("options", [{}, {"gan_own_noise": False}, {"r1_weight": 1.0}])
def test_dmd2_trains_the_roles_it_names_and_no_others(kind, options):
    """critic_loss: critic and head; generator_loss: generator; teacher: never. Grads, else None."""
    gan, critic, _ = judges(kind)
    teacher = small_network(FlowSchedule(), seed=1).requires_grad_(False).eval()
    if kind == "teacher":
        gan.teacher = teacher
    generator = full("generator", small_network(FlowSchedule(), seed=5))
    before = copy.deepcopy(teacher.state_dict())
    method = DMD2(
        generator,
        critic,
        teacher,
        StepPlan.uniform(2),
        DMD2Config(gan_weight=1e-2, **options),
        sample_shape=(3,),
        discriminator=gan,
    )
    losses = {"critic": method.critic_loss, "generator": method.generator_loss}
    for phase, names in method.updates.items():
        batch = Batch(noise(8, 3), Conditioning.empty(8), Double(0, 3, phase))
        losses[phase](batch).value.backward()
        for name, role in method.roles.items():
            learned = [g is not None for g in gradients(role.module).values()]
            assert all(learned) if name in names else not any(learned), (phase, name)
            role.module.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


class Watched(CriticTrunk):
    """A discriminator that keeps the times it is asked about."""

    def learn(self, critic, denoised, judged):
        self.denoised, self.judged = denoised.t, [batch.t for batch in judged]
        return super().learn(critic, denoised, judged)

    def judge(self, critic, fake):
        self.judged = [fake.t]
        return super().judge(critic, fake)


def gan_at(**options):
    """DMD2 with a GAN that is watched, and that GAN."""
    gan, critic, _ = judges("critic")
    teacher = small_network(FlowSchedule(), seed=1).requires_grad_(False).eval()
    generator = full("generator", small_network(FlowSchedule(), seed=5))
    config, watched = DMD2Config(gan_weight=1e-2, **options), Watched(gan.head)
    given = {"sample_shape": (3,), "discriminator": watched}
    return DMD2(generator, critic, teacher, StepPlan.uniform(1), config, **given), watched


def test_the_gan_may_look_at_little_noise_alone():
    """gan_t_max bounds the times of the judged batches in both phases, and no others."""
    method, gan = gan_at(gan_t_max=0.2)
    batch = Batch(noise(64, 3), Conditioning.empty(64), Double(0, 3, "critic"))
    method.critic_loss(batch)
    assert gan.denoised.max() > 0.9
    assert torch.equal(*gan.judged)
    assert 0.1 < gan.judged[0].max() <= 0.2
    method.generator_loss(batch)
    assert 0.1 < gan.judged[0].max() <= 0.2


@pytest.mark.parametrize(
    "options", [{"gan_t_max": 0.2, "gan_own_noise": False}, {"gan_t_max": 0}, {"gan_t_max": 1.5}]
)
def test_what_gan_t_max_cannot_be(options):
    with pytest.raises(UserError, match="gan_t_max"):
        gan_at(**options)


@pytest.mark.parametrize("interval", [(0.6, 0.6), (0.7, 0.3), (-0.1, 0.5), (0.2, 1.1)], ids=str)
def test_what_guidance_interval_cannot_be(interval):
    with pytest.raises(UserError, match="guidance_interval"):
        gan_at(guidance_interval=interval)


def test_the_real_score_is_guided_within_the_interval_alone():
    """guidance_interval (0, 0.5): at t > 0.5 the loss is that of the unguided teacher."""
    networks = [small_network(FlowSchedule(), seed=seed) for seed in range(5, 9)]
    generator, critic, teacher, guided = networks

    def loss(config):
        method = DMD2(
            full("generator", generator),
            full("critic", critic),
            teacher,
            StepPlan.uniform(1),
            config,
            sample_shape=(3,),
            guide=lambda denoiser, scale: guided,
        )
        batch = Batch(None, Conditioning.empty(16), Double(0, 3, "generator"))
        return method.generator_loss(batch).value.item()

    def losses(**times):
        """Without guidance, with it, and with it at t <= 0.5 alone."""
        plain = DMD2Config(gan_weight=0.0, **times)
        whole = replace(plain, guidance_scale=4.0)
        return [loss(c) for c in (plain, whole, replace(whole, guidance_interval=(0.0, 0.5)))]

    plain, whole, within = losses(t_min=0.5, t_max=0.9)
    assert within == plain != whole
    plain, whole, within = losses(t_min=0.1, t_max=0.5)
    assert within == whole != plain


SHAPES = [(5,), (7, 5), (6, 4, 4), (6, 8, 8), (6, 16, 16), (4, 7, 7), (4, 8, 12), (3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_logit_does_not_depend_on_its_neighbours(shape, training):
    """Head has no batch statistics: a sample's logit is the same alone and in any batch."""
    torch.manual_seed(0)
    head = Head([shape]).double().train(training)
    feature = noise(6, *shape)
    together = head((feature,))
    assert together.shape == (6,)
    for i in range(6):
        close(head((feature[i : i + 1],)), together[i : i + 1])
    changed = feature.clone()
    changed[1:] = 100.0
    close(head((changed,))[0], together[0])
    assert list(head.buffers()) == []


@pytest.mark.parametrize("width", [4, 6, 16, 32, 64, 128])
@pytest.mark.parametrize("size", [4, 8])
def test_a_logit_depends_on_its_feature_at_any_width(width, size):
    """d logit/d feature is not 0: no norm over single numbers, (h - h)/0, stands in between.

    The last map is 1 x 1, so a GroupNorm of one channel a group would give a constant there; with
    two a group it would give signs. Numbers that vary are left over.
    """
    torch.manual_seed(0)
    head = Head([(width, size, size)]).double()
    feature = noise(64, width, size, size).requires_grad_()
    logits = head((feature,))
    (g,) = torch.autograd.grad(logits.sum(), feature)
    assert logits.std() > 0.03
    assert (g.flatten(1).norm(dim=1) > 1e-3).all()
    last_norm = [layer for layer in head.stacks[0] if isinstance(layer, nn.GroupNorm)][-1]
    assert last_norm.num_channels // last_norm.num_groups > 2


def test_the_logit_of_several_features_is_their_mean():
    """Head([s1, s2])(f1, f2) = (stack1(f1) + stack2(f2))/2; tokens are averaged."""
    torch.manual_seed(0)
    head = Head([(5,), (7, 5)]).double()
    vector, tokens = noise(4, 5), noise(4, 7, 5)
    one, two = (
        stack(f).flatten(1).mean(1) for stack, f in zip(head.stacks, (vector, tokens), strict=True)
    )
    close(head((vector, tokens)), (one + two) / 2)
    close(head((vector, tokens[:, [3, 1, 0, 2, 4, 6, 5]])), head((vector, tokens)))
    with pytest.raises(ValueError, match="zip"):
        head((vector,))


def test_a_head_is_built_for_the_features_of_its_trunk():
    """build_head probes one sample; without a tap there is nothing to judge by."""
    trunk = small_network(FlowSchedule()).float()
    head = build_head(trunk, (3,), Conditioning.empty(5))
    features = trunk(torch.randn(4, 3), torch.full((4,), 0.5), Conditioning.empty(4), features=True)
    assert head(features.features).shape == (4,)
    trunk.backbone.taps.clear()
    with pytest.raises(ValueError, match="no feature tap"):
        build_head(trunk, (3,), Conditioning.empty(1))


def test_dmd2_asks_for_what_it_lacks():
    """A GAN without a discriminator or real data, guidance without a null: errors that say so."""
    gan, critic, _ = judges("critic")
    teacher, plan = small_network(FlowSchedule()), StepPlan()
    generator = full("generator", teacher)
    with pytest.raises(UserError, match="discriminator"):
        DMD2(generator, critic, teacher, plan, DMD2Config(), sample_shape=(3,))
    guided = DMD2Config(gan_weight=0.0, guidance_scale=2.0)
    with pytest.raises(UserError, match="needs a guide"):
        DMD2(generator, critic, teacher, plan, guided, sample_shape=(3,))
    method = DMD2(
        generator, critic, teacher, plan, DMD2Config(), sample_shape=(3,), discriminator=gan
    )
    with pytest.raises(UserError, match="real samples"):
        method.critic_loss(Batch(None, Conditioning.empty(4), Double(0, 0, "critic")))


# --- times and draws ---------------------------------------------------------------------------


def test_dmd2_matches_at_steps_20_to_980_and_its_critic_learns_at_all():
    """Matching t: every step of {20, ..., 980} and no other; the critic's: {0, ..., 999}."""
    schedule, config = SCHEDULES["vp"], DMD2Config()
    for times, first, last in (((config.t_min, config.t_max), 20, 980), ((), 0, 999)):
        t = UniformTimes(*times).draw(schedule, Draws(0, 0, "times"), 100_000)
        steps = schedule.timestep(t).unique()
        assert torch.equal(steps, torch.arange(first, last + 1).double())


def test_log_normal_times_have_log_normal_noise_levels():
    """ln(sigma/alpha) ~ N(mean, std^2) on any schedule: EDM's training times, within 4 s.e."""
    n = 50_000
    for schedule in (EDMSchedule(1e-4, 500.0), FlowSchedule(3.0)):
        t = LogNormalTimes(-0.4, 1.0).draw(schedule, Draws(0, 0, "times"), n)
        log_level = -schedule.log_snr(t) / 2
        assert abs(log_level.mean().item() + 0.4) < 4 / n**0.5
        assert abs(log_level.std().item() - 1.0) < 4 / (2 * n) ** 0.5


def draw_all(batch, **options):
    """Every kind of draw that a loss makes, in order, for a (micro-)batch."""
    draws = Draws(5, 17, "critic", **options)
    like = torch.zeros(batch, 2, 3)
    return [
        draws.normal(batch, 3),
        draws.shared_index(1000),
        draws.uniform(batch, 0.02, 0.98),
        draws.normal_like(like),
        draws.shared_index(1000),
        draws.normal(batch, 2, dtype=torch.float64),
    ]


@pytest.mark.parametrize(
    "parts",
    [[(0, 1, 2, 3)], [(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)], [(0,), (1, 2, 3)]],
    ids=["1 x 16", "2 x 8", "4 x 4", "4 + 12"],
)
def test_a_global_batch_has_the_same_numbers_however_it_is_cut(parts):
    """Shards 0-3 in one batch of 16, two of 8 (accumulated or on two ranks), four of 4: one run."""
    whole = draw_all(16, shards=(0, 1, 2, 3))
    pieces = [draw_all(4 * len(shards), shards=shards) for shards in parts]
    for i, value in enumerate(whole):
        if isinstance(value, int):
            assert all(piece[i] == value for piece in pieces)
        else:
            assert torch.equal(torch.cat([piece[i] for piece in pieces]), value)


def test_draws_depend_on_seed_iteration_purpose_shard_and_order():
    """Each of the five changes the numbers; the same five repeat them, in any process."""
    base = {"seed": 0, "iteration": 1, "purpose": "critic", "shards": (0,)}
    first = Draws(**base).normal(64)
    assert torch.equal(Draws(**base).normal(64), first)
    for other in ({"seed": 1}, {"iteration": 2}, {"purpose": "generator"}, {"shards": (1,)}):
        assert not torch.equal(Draws(**(base | other)).normal(64), first)
    draws = Draws(**base)
    assert torch.equal(draws.normal(64), first)
    assert not torch.equal(draws.normal(64), first)
    assert key(0, "critic", 3) == 7008703563762208931  # unlike hash(), the same in every process


def test_draws_have_the_laws_they_claim():
    """normal: mean 0, variance 1, independent shards; uniform: U(low, high], within 4 s.e."""
    n = 40_000
    x = Draws(0, 0, "laws", shards=(0, 1)).normal(n, dtype=torch.float64)
    assert abs(x.mean().item()) < 4 / n**0.5
    assert abs(x.var().item() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x[: n // 2] * x[n // 2 :]).mean().item()) < 4 / (n / 2) ** 0.5
    u = Draws(0, 0, "laws").uniform(n, 2.0, 5.0)
    assert u.dtype == torch.float64
    assert abs(u.mean().item() - 3.5) < 4 * 3 / (12 * n) ** 0.5
    assert u.min() > 2.0
    assert u.max() <= 5.0
    assert x.dtype == torch.float64
    assert Draws(0, 0, "laws").normal_like(torch.zeros(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("n", [2, 4, 7])
def test_a_shared_index_is_uniform_and_the_same_everywhere(n):
    """j in {0, ..., n - 1}, equally often over iterations (chi-square), for every shard alike."""
    counts = [0] * n
    for iteration in range(3000):
        on_ranks = {Draws(0, iteration, "exit", (shard,)).shared_index(n) for shard in range(3)}
        (index,) = on_ranks
        counts[index] += 1
    expected = 3000 / n
    chi_square = sum((c - expected) ** 2 / expected for c in counts)
    assert chi_square < {2: 10.83, 4: 16.27, 7: 22.46}[n]  # the 0.1 % quantiles


def test_a_batch_that_cannot_be_cut_is_refused():
    """B must be a multiple of the number of shards."""
    with pytest.raises(ValueError, match="cannot be cut"):
        Draws(0, 0, "critic", shards=(0, 1, 2)).normal(16)


# --- regression on noise-image pairs ---------------------------------------------------------


class Line(Backbone):
    """The output a + b x, two numbers a dimension."""

    def __init__(self, dimensions):
        super().__init__(nn.Linear(1, 1))
        self.a = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(dimensions, dtype=torch.float64))

    @property
    def dtype(self):
        return None

    def forward(self, x, timestep, cond):
        return self.a + self.b * x


@pytest.mark.slow
@pytest.mark.parametrize("time", [1.0, 0.4])
@pytest.mark.parametrize("distance", [squared_error, pseudo_huber], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_regression_finds_the_teachers_map_from_z_to_x0(name, distance, time):
    """Of a Gaussian N(m, S^2) the ODE takes noise x_1 to m + S (x_1 - alpha m)/sqrt(v), a line in
    z: the optimum of every distance, whatever time the student is called at. Pairs are the
    sampler's own, of the exact denoiser."""
    schedule, m, std = SCHEDULES[name], MEANS[:1], STDS[:1]
    teacher = GaussianMixture(schedule, m, std)
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(256, 2, generator=draw, dtype=torch.float64)
    x_1, cond = start(StepPlan(), schedule, z), Conditioning.empty(len(z))
    even = torch.linspace(1, 1e-3, 400, dtype=torch.float64).tolist()
    x0 = sample(teacher, schedule, x_1, even, cond, ddim_step if name == "flow" else heun_step)
    alpha, sigma = schedule(torch.ones(1, dtype=torch.float64))
    closed = m + std * (x_1 - alpha * m) / (alpha**2 * std**2 + sigma**2).sqrt()
    close(x0, closed, 0.02)

    role = Role("generator", Denoiser(Line(2), schedule, PredictsX0()))
    plan = StepPlan((time,))
    method = Regression(role, plan, RegressionConfig(), distance)
    batch = Batch(x0, cond, Draws(0, 1, "generator"), z)
    line = role.module.backbone
    optimizer = torch.optim.LBFGS([line.a, line.b], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = method.generator_loss(batch).value
        value.backward()
        return value

    start_value = loss().item()
    optimizer.step(loss)
    assert loss().item() < 1e-3 * start_value
    x_t = start(plan, schedule, z)
    found = role.module(x_t, plan.time(0, x_t), cond).x0_hat
    close(found.detach(), closed, 0.02)


def test_regression_of_samples_without_their_noise_is_refused():
    """Real samples are no pairs, and several steps are not trained by them."""
    role = Role("generator", Denoiser(Line(2), SCHEDULES["flow"], PredictsX0()))
    method = Regression(role, StepPlan(), RegressionConfig())
    batch = Batch(torch.zeros(4, 2), Conditioning.empty(4), Draws(0, 1, "generator"))
    with pytest.raises(UserError, match="make some with stepdistill precompute --pairs"):
        method.generator_loss(batch)
    with pytest.raises(UserError, match="trains one step, and the plan has 2"):
        Regression(role, StepPlan.uniform(2), RegressionConfig())
