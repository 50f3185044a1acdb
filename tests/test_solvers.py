"""Solver steps, samplers and roll-outs, against the exact flow of a Gaussian and against diffusers.

For x0 ~ N(m, S^2) the probability-flow ODE is solved by

    Phi_{t->s}(x) = alpha_s m + sqrt(v_s / v_t) (x - alpha_t m),    v_t = alpha_t^2 S^2 + sigma_t^2
"""

import contextlib
import itertools
import json
import math

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import nn

from stepdistill.backbones.exact import GaussianMixture
from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import (
    Backbone,
    Denoiser,
    Prediction,
    PredictsEDM,
    PredictsEps,
    PredictsFlow,
    PredictsV,
)
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.methods import DMD2, Batch, DMD2Config
from stepdistill.methods import rollout as rollout_module
from stepdistill.plans import (
    StepPlan,
    backward_simulation,
    generate,
    ode_move,
    renoise_move,
    start,
    teacher_times,
)
from stepdistill.roles import full
from stepdistill.schedules import (
    EDMSchedule,
    FlowSchedule,
    TrigonometricSchedule,
    VPSchedule,
    expand_like,
)
from stepdistill.solvers import ddim, ddim_step, euler_step, heun_step, sample

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULES = {
    "vp": VPSchedule.from_betas(BETAS),
    "vp-zero-snr": VPSchedule.from_betas(rescale_zero_terminal_snr(BETAS)),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(3.0),
    "trigonometric": TrigonometricSchedule(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=[*SCHEDULES])
MEAN, STD = 0.7, 0.6


def close(a, b, tolerance=1e-10):
    """Equal to ``tolerance``, absolute near zero and relative elsewhere."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


def gaussian(schedule, std=STD):
    """The exact denoiser of N(MEAN, std^2) in one dimension."""
    mean, std = torch.tensor([[[MEAN]], [[std]]], dtype=torch.float64)
    return GaussianMixture(schedule, mean, std)


def flow_map(schedule, x, t, s):
    """Phi_{t->s}(x), written out."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    v_t, v_s = (a**2 * STD**2 + b**2 for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    centred = x - expand_like(alpha_t, x) * MEAN
    return expand_like(alpha_s, x) * MEAN + expand_like((v_s / v_t).sqrt(), x) * centred


class Counted(nn.Module):
    """A denoiser that remembers the (x_t, t) it is called with."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.calls = denoiser, []

    def forward(self, x_t, t, cond, *, features=False):
        self.calls.append((x_t, t))
        return self.denoiser(x_t, t, cond)


class Wavy(Backbone):
    """A smooth network of x and its timestep: nothing a solver could be right about by accident."""

    def __init__(self, time_scale=1e-3):
        super().__init__(nn.Identity())
        self.time_scale = time_scale

    def forward(self, x, timestep, cond):
        return (1.3 * x + expand_like(timestep * self.time_scale, x)).sin()


def call(denoiser, x, native):
    """The network's raw output as a diffusers loop asks for it."""
    timestep = torch.as_tensor(native, dtype=x.dtype).expand(len(x))
    return denoiser.backbone(x, timestep, Conditioning.empty(len(x)))


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at(t, x):
    """The time ``t`` for each sample of ``x``."""
    return torch.full((len(x),), t, dtype=torch.float64)


# --- DDIM and Euler against diffusers ----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize(
    ("prediction", "parametrization", "zero_snr"),
    [
        ("epsilon", PredictsEps(), False),
        ("v_prediction", PredictsV(), False),
        ("v_prediction", PredictsV(), True),
    ],
)
def test_ddim_equals_diffusers_to_the_last_step(prediction, parametrization, zero_snr, steps):
    """x_s = alpha_s x0 + sigma_s eps, from step N - 1 down to alpha = 1 where x0 itself is left."""
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    schedule = VPSchedule(theirs.alphas_cumprod)
    denoiser = Denoiser(Wavy(), schedule, parametrization)
    theirs.set_timesteps(steps)
    x = z = noise(3, 2, 4, 4)
    for native in theirs.timesteps:
        x = theirs.step(call(denoiser, x, native), native, x, eta=0.0).prev_sample
    times = schedule.time_of_timestep(theirs.timesteps).tolist()
    cond = Conditioning.empty(3)
    close(sample(denoiser, schedule, z, times, cond, ddim_step), x)
    s, t = at(times[-1], z), at(0.0, z)  # the last step is a DDIM step to t = 0, too
    one = ddim_step(denoiser, schedule, z, s, t, cond)
    close(one, denoiser(z, s, cond).x0_hat)
    plan = StepPlan(tuple(times), ode_move)
    close(generate(denoiser, schedule, plan, z, cond, lambda: z / 0), x)


@pytest.mark.parametrize(
    ("prediction", "parametrization"), [("epsilon", PredictsEps()), ("v_prediction", PredictsV())]
)
def test_euler_equals_diffusers_in_sigma_coordinates(prediction, parametrization):
    """y_s = y_t + (n_s - n_t)(y_t - x0)/n_t with y = x/alpha, n = sigma/alpha, as EulerDiscrete."""
    theirs = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        timestep_spacing="trailing",
    )
    schedule = VPSchedule(theirs.alphas_cumprod)
    denoiser = Denoiser(Wavy(), schedule, parametrization)
    theirs.set_timesteps(8)
    z = noise(3, 2, 4, 4)
    y = z / schedule(torch.ones(1))[0]
    for native in theirs.timesteps:
        output = call(denoiser, theirs.scale_model_input(y, native), native)
        y = theirs.step(output, native, y).prev_sample
    times = schedule.time_of_timestep(theirs.timesteps).tolist()
    ours = sample(denoiser, schedule, z, times, Conditioning.empty(3), euler_step)
    close(ours, y, 2e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_and_ddim_equal_the_flow_euler_of_diffusers(shift):
    """x_s = x_t + (sigma_s - sigma_t) u, from pure noise (DDIM alone) and from t = 0.9 (both)."""
    schedule = FlowSchedule(shift)
    denoiser = Denoiser(Wavy(), schedule, PredictsFlow())
    for step, times in (
        (ddim_step, [1.0, 0.75, 0.5, 0.25]),
        (ddim_step, [0.9, 0.6, 0.1]),
        (euler_step, [0.9, 0.6, 0.1]),
    ):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        theirs.set_timesteps(sigmas=times)
        x = z = noise(3, 2, 4, 4)
        for native in theirs.timesteps:
            x = theirs.step(call(denoiser, x, native), native, x).prev_sample
        close(sample(denoiser, schedule, z, times, Conditioning.empty(3), step), x, 1e-5)


@every_schedule
def test_ddim_is_an_euler_step_in_sigma_over_alpha(schedule):
    """DDIM = Euler of dy/dn = (y - x0)/n, for any denoiser and any t > s."""
    denoiser = Denoiser(Wavy(), schedule, PredictsFlow())
    x, cond = noise(9, 3), Conditioning.empty(9)
    t = torch.linspace(0.2, 0.98, 9, dtype=torch.float64)
    s = t * torch.linspace(0.0, 0.9, 9, dtype=torch.float64)
    a, b = (step(denoiser, schedule, x, t, s, cond) for step in (ddim_step, euler_step))
    close(a, b)


def test_ddim_takes_the_x0_it_is_given():
    """x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0)/sigma_t, by hand on the flow schedule."""
    x_t, x0 = torch.tensor([[2.0]]).double(), torch.tensor([[0.5]]).double()
    x_s = ddim(FlowSchedule(), x_t, x0, at(0.8, x_t), at(0.4, x_t))
    eps = (2.0 - 0.2 * 0.5) / 0.8
    close(x_s, torch.tensor([[0.6 * 0.5 + 0.4 * eps]]))


# --- Heun --------------------------------------------------------------------------------------


def test_heun_equals_algorithm_1_of_edm():
    """Karras et al. (2022), Algorithm 1 with S_churn = 0, ending with the Euler step to sigma 0."""
    schedule = EDMSchedule()
    denoiser = Denoiser(Wavy(1.0), schedule, PredictsEDM())
    cond = Conditioning.empty(3)
    times = teacher_times(7)
    sigmas = [*schedule(torch.tensor(times, dtype=torch.float64))[1].tolist(), 0.0]
    x = x_start = 80 * noise(3, 2, 4, 4)

    def slope(x, sigma):  # d = (x - D(x; sigma))/sigma
        t = schedule.time_of_timestep(at(sigma, x))
        return (x - denoiser(x, t, cond).x0_hat) / sigma

    for now, after in itertools.pairwise(sigmas):
        d = slope(x, now)
        euler = x + (after - now) * d
        x = euler if after == 0 else x + (after - now) * (d + slope(euler, after)) / 2
    close(sample(denoiser, schedule, x_start, times, cond, heun_step), x, 1e-9)


@pytest.mark.parametrize(
    ("prediction", "parametrization"), [("epsilon", PredictsEps()), ("v_prediction", PredictsV())]
)
def test_heun_equals_diffusers(prediction, parametrization):
    """HeunDiscrete: slope averaged over both ends in (x/alpha, sigma/alpha), Euler to 0 at last."""
    theirs = diffusers.HeunDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        timestep_spacing="trailing",
    )
    schedule = VPSchedule(theirs.alphas_cumprod)
    denoiser = Denoiser(Wavy(), schedule, parametrization)
    theirs.set_timesteps(6)
    z = noise(3, 2, 4, 4)
    y = z / schedule(torch.ones(1))[0]
    for native in theirs.timesteps:
        output = call(denoiser, theirs.scale_model_input(y, native), native)
        y = theirs.step(output, native, y).prev_sample
    times = schedule.time_of_timestep(theirs.timesteps[::2]).tolist()
    assert len(times) == 6
    counted = Counted(denoiser)
    close(sample(counted, schedule, z, times, Conditioning.empty(3)), y, 2e-5)
    assert len(counted.calls) == len(theirs.timesteps) == 11


# --- laws on the exact flow --------------------------------------------------------------------


@every_schedule
def test_the_exact_flow_composes_and_keeps_the_marginals(schedule):
    """Phi_{r->s} Phi_{t->r} = Phi_{t->s}; and N(alpha_t m, v_t) goes to N(alpha_s m, v_s)."""
    x = noise(5, 1)
    t, r, s = at(0.9, x), at(0.5, x), at(0.2, x)
    by_way_of_r = flow_map(schedule, flow_map(schedule, x, t, r), r, s)
    close(by_way_of_r, flow_map(schedule, x, t, s))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t[:1]), schedule(s[:1])
    one_std = alpha_t * MEAN + (alpha_t**2 * STD**2 + sigma_t**2).sqrt()
    moved = flow_map(schedule, one_std[:, None], t[:1], s[:1])
    close(moved[:, 0], alpha_s * MEAN + (alpha_s**2 * STD**2 + sigma_s**2).sqrt())


@pytest.mark.parametrize(
    ("step", "factor"), [(ddim_step, 4.0), (euler_step, 4.0), (heun_step, 8.0)]
)
@every_schedule
def test_local_errors_shrink_by_the_order(schedule, step, factor):
    """Halving a step divides its error to Phi by about 4 (DDIM, Euler) or 8 (Heun)."""
    denoiser, x = gaussian(schedule), noise(5, 1) + 1.5
    t, cond = at(0.6, x), Conditioning.empty(5)
    errors = []
    for h in (0.016, 0.008, 0.004):
        s = t - h
        error = step(denoiser, schedule, x, t, s, cond) - flow_map(schedule, x, t, s)
        errors.append(error.abs().mean().item())
    for coarse, fine in itertools.pairwise(errors):
        assert 0.8 * factor < coarse / fine < 1.2 * factor


@pytest.mark.parametrize(("step", "order"), [(ddim_step, 1), (heun_step, 2)])
def test_the_samplers_error_falls_with_its_order(step, order):
    """From sigma_max to x0 by n steps of EDM's grid: doubling n divides the error by 2^order."""
    schedule = EDMSchedule()
    x_t = 80 * noise(64, 1)
    t, cond = at(1.0, x_t), Conditioning.empty(64)
    exact = MEAN + STD * (x_t - MEAN) / (STD**2 + 80.0**2) ** 0.5  # Phi to sigma = 0
    errors = []
    for n in (40, 80):
        x0 = sample(gaussian(schedule), schedule, x_t, teacher_times(n), cond, step)
        errors.append((x0 - exact).abs().mean().item())
    assert errors[1] < 0.03
    assert 0.75 * 2**order < errors[0] / errors[1] < 1.35 * 2**order
    assert torch.equal(t, torch.ones(64).double())  # the sampler leaves its inputs alone


@every_schedule
def test_a_point_mass_is_reached_in_one_step(schedule):
    """S = 0: x0_hat = m wherever one stands, so DDIM from any t to any s is exactly Phi, and
    every number of steps ends on m."""
    denoiser = gaussian(schedule, std=0.0)
    x0 = torch.full((6, 1), MEAN, dtype=torch.float64)
    eps, cond = noise(6, 1), Conditioning.empty(6)
    t = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.3, 0.01], dtype=torch.float64)
    s = torch.tensor([0.0, 0.7, 0.1, 0.499, 0.0, 0.0], dtype=torch.float64)
    x_s = ddim_step(denoiser, schedule, schedule.add_noise(x0, t, eps), t, s, cond)
    close(x_s, schedule.add_noise(x0, s, eps))
    for n in (1, 3):
        plan = StepPlan.uniform(n, ode_move)
        x_t = generate(denoiser, schedule, plan, eps, cond, lambda: eps)
        close(x_t, x0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_heun_costs_2n_minus_1_calls(n):
    """n times cost 2 (n - 1) calls and one for the last x0; DDIM costs n."""
    x_t, cond = 80 * noise(2, 1), Conditioning.empty(2)
    for step, calls in ((heun_step, 2 * n - 1), (ddim_step, n), (euler_step, n)):
        counted = Counted(gaussian(EDMSchedule()))
        sample(counted, EDMSchedule(), x_t, teacher_times(n), cond, step)
        assert len(counted.calls) == calls


def test_the_sampler_visits_its_times_in_order():
    """Each call is at the time where x_t stands; the default step is Heun, the end is x0_hat."""
    counted, x_t = Counted(gaussian(EDMSchedule())), 80 * noise(2, 1)
    x0 = sample(counted, EDMSchedule(), x_t, [1.0, 0.6, 0.2], Conditioning.empty(2))
    assert [t[0].item() for _, t in counted.calls] == [1.0, 0.6, 0.6, 0.2, 0.2]
    last_x, last_t = counted.calls[-1]
    assert torch.equal(x0, counted.denoiser(last_x, last_t, Conditioning.empty(2)).x0_hat)


def test_teacher_times_are_edms_grid():
    """t_i = 1 - i/(n - 1): sigma_max first, sigma_min last (Karras et al., Eq. 5)."""
    for n in (2, 18):
        theirs = diffusers.EDMEulerScheduler()
        theirs.set_timesteps(n)
        sigma = EDMSchedule()(torch.tensor(teacher_times(n)).double())[1]
        close(sigma.float(), theirs.sigmas[:-1], 1e-5)
    assert list(teacher_times(1)) == [1.0]


# --- moves and plans ---------------------------------------------------------------------------


@every_schedule
def test_renoising_x0_gives_the_marginal(schedule):
    """x0 ~ N(alpha_0 m, v_0) -> x_s = alpha_{s|0} x0 + sigma_{s|0} eps ~ N(alpha_s m, v_s).

    Exactly: the mean is the image of the mean, the variance the sum of squared coefficients. On EDM
    "x0" is a sample at sigma_min, so the kernel adds sigma_s^2 - sigma_min^2 (Song et al. 2023).
    """
    s, (alpha_0, sigma_0) = torch.linspace(0.05, 1, 20).double(), schedule(torch.zeros(20))
    (alpha_s, sigma_s), nothing = schedule(s), torch.zeros(20, 1).double()
    mean = (alpha_0 * MEAN)[:, None]
    std_0 = (alpha_0**2 * STD**2 + sigma_0**2).sqrt()[:, None]
    centre = renoise_move(schedule, nothing, mean, s, s, nothing)
    by_x0 = renoise_move(schedule, nothing, mean + std_0, s, s, nothing) - centre
    by_eps = renoise_move(schedule, nothing, mean, s, s, nothing + 1) - centre
    close(centre[:, 0], alpha_s * MEAN)
    close((by_x0**2 + by_eps**2)[:, 0], alpha_s**2 * STD**2 + sigma_s**2)


def test_a_consistency_models_renoising_adds_the_difference_of_variances():
    """Algorithm 1 of consistency models: x + sqrt(sigma^2 - sigma_min^2) z."""
    x0, eps = noise(4, 3), noise(4, 3, seed=1)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0]).double()
    sigma = EDMSchedule()(t)[1][:, None]
    expected = x0 + (sigma**2 - 0.002**2).sqrt() * eps
    close(renoise_move(EDMSchedule(), x0, x0, t, t, eps), expected)


def drawn_from(generator):
    """Noise like a tensor, the numbers that diffusers draws from ``generator``."""
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


@pytest.mark.parametrize("steps", [[999], [999, 499], [999, 749, 499, 249]])
@pytest.mark.parametrize(
    ("prediction", "parametrization"), [("epsilon", PredictsEps()), ("v_prediction", PredictsV())]
)
def test_generate_equals_the_lcm_scheduler(prediction, parametrization, steps):
    """x0 -> alpha_s x0 + sigma_s eps -> x0: LCMScheduler with the plan's timesteps and noise."""
    theirs = diffusers.LCMScheduler(
        prediction_type=prediction, timestep_scaling=1e5, clip_sample=False
    )
    schedule = VPSchedule(theirs.alphas_cumprod)
    denoiser = Denoiser(Wavy(), schedule, parametrization)
    theirs.set_timesteps(timesteps=steps)
    generator = torch.Generator().manual_seed(3)
    x = z = noise(3, 2, 4, 4)
    for native in theirs.timesteps:
        output = call(denoiser, x, native)
        x = theirs.step(output, native, x, generator=generator).prev_sample
    plan = StepPlan(tuple(schedule.time_of_timestep(theirs.timesteps).tolist()))
    fresh = drawn_from(torch.Generator().manual_seed(3))
    ours = generate(denoiser, schedule, plan, z, Conditioning.empty(3), lambda: fresh(z))
    close(ours, x, 1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_generate_equals_the_flow_lcm_scheduler(steps, shift):
    """x0 = x - sigma u, x_s = (1 - sigma_s) x0 + sigma_s eps: FlowMatchLCM, shifted even steps."""
    theirs, schedule = diffusers.FlowMatchLCMScheduler(shift=shift), FlowSchedule(shift)
    plan = StepPlan.uniform(steps)
    denoiser = Denoiser(Wavy(), schedule, PredictsFlow())
    theirs.set_timesteps(sigmas=list(plan.times))
    generator = torch.Generator().manual_seed(3)
    x = z = noise(3, 2, 4, 4, dtype=torch.float32)
    for native in theirs.timesteps:
        x = theirs.step(call(denoiser, x, native), native, x, generator=generator).prev_sample
    fresh = drawn_from(torch.Generator().manual_seed(3))
    ours = generate(denoiser, schedule, plan, z, Conditioning.empty(3), lambda: fresh(z))
    close(ours, x, 1e-5)


@pytest.mark.parametrize("grid", [[0], [22, 0], [33, 22, 11, 0]])
def test_generate_equals_the_consistency_model_scheduler(grid):
    """CMStochasticIterative: x0 + sqrt(sigma_s^2 - sigma_min^2) z on Karras levels, from 80 z."""
    theirs, schedule = diffusers.CMStochasticIterativeScheduler(clip_denoised=False), EDMSchedule()
    denoiser = Denoiser(Wavy(1e-2), schedule, PredictsEDM(boundary=0.002, noise_scale=250.0))
    theirs.set_timesteps(timesteps=grid)
    generator = torch.Generator().manual_seed(3)
    z = noise(3, 2, 4, 4)
    x = z * theirs.init_noise_sigma
    for native in theirs.timesteps:
        output = call(denoiser, theirs.scale_model_input(x, native), native)
        x = theirs.step(output, native, x, generator=generator).prev_sample
    plan = StepPlan(tuple(1 - k / 39 for k in reversed(grid)))
    fresh = drawn_from(torch.Generator().manual_seed(3))
    ours = generate(denoiser, schedule, plan, z, Conditioning.empty(3), lambda: fresh(z))
    close(ours, x, 1e-4)


def test_generate_equals_the_scm_scheduler():
    """SCM with sigma_data = 1: cos(t) x0 + sin(t) eps at the plan's angles."""
    theirs = diffusers.SCMScheduler(sigma_data=1.0)
    schedule, plan = TrigonometricSchedule(), StepPlan((1.0, 0.8, 0.3))
    denoiser = Denoiser(Wavy(1.0), schedule, PredictsV())
    angles = schedule.timestep(torch.tensor([*plan.times, 0.0]).double())
    theirs.set_timesteps(3, timesteps=angles, max_timesteps=None, intermediate_timesteps=None)
    generator = torch.Generator().manual_seed(3)
    x = z = noise(3, 2, 4, 4, dtype=torch.float32)
    for native in theirs.timesteps[:-1]:
        x = theirs.step(call(denoiser, x, native), native, x, generator=generator).prev_sample
    fresh = drawn_from(torch.Generator().manual_seed(3))
    ours = generate(denoiser, schedule, plan, z, Conditioning.empty(3), lambda: fresh(z))
    close(ours, x, 1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_then_renoise_is_the_step_of_tcd(eta):
    """TCD: DDIM to s = (1 - eta) t', then q(x_t' | x_s): sqrt(abar_t'/abar_s) x_s + ... eps."""
    theirs = diffusers.TCDScheduler()
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    schedule = VPSchedule(theirs.alphas_cumprod)
    theirs.set_timesteps(timesteps=[999, 499])
    x, output = noise(4, 3), noise(4, 3, seed=1)
    generator = torch.Generator().manual_seed(3)
    prev = theirs.step(output, theirs.timesteps[0], x, eta=eta, generator=generator).prev_sample
    natives = torch.tensor([999, math.floor((1 - eta) * 499), 499])
    t, s, after = (at(time, x) for time in schedule.time_of_timestep(natives).tolist())
    alpha, sigma = (expand_like(a, x) for a in schedule(t))
    x_s = ddim(schedule, x, PredictsEps().x0_hat(x, output, alpha, sigma), t, s)
    eps = drawn_from(torch.Generator().manual_seed(3))(x)
    close(schedule.renoise(x_s, s, after, eps), prev, 1e-8)


def test_plans_fall_from_at_most_1_and_stay_above_0():
    """times[0] <= 1, strictly falling, times[-1] > 0; anything else is a user's mistake."""
    assert StepPlan.uniform(4).times == (1.0, 0.75, 0.5, 0.25)
    for times in ((), (0.5, 0.5), (0.5, 0.7), (1.1, 0.5), (1.0, 0.0), (1.0, -0.5)):
        with pytest.raises(UserError, match="step times"):
            StepPlan(times)
    with pytest.raises(UserError, match="at least 1 step"):
        StepPlan.uniform(0)


def test_a_part_of_a_plan_is_evenly_spaced():
    """subset(m) of n steps: every (n/m)-th time, the first kept; other m are a user's mistake."""
    plan = StepPlan.uniform(4, ode_move)
    assert plan.subset(2) == StepPlan((1.0, 0.5), ode_move)
    assert plan.subset(1) == StepPlan((1.0,), ode_move)
    assert plan.subset(4) == plan
    for steps in (0, 3, 8):
        with pytest.raises(UserError, match=r"\[1, 2, 4\]"):
            plan.subset(steps)


def test_a_whole_plan_has_no_part():
    """Where only the last x0 was trained to be a sample, fewer steps are a user's mistake."""
    plan = StepPlan((1.0, 0.75, 0.5, 0.25), whole=True)
    assert plan.counts() == [4]
    assert plan.subset(4) == plan
    with pytest.raises(UserError, match=r"4 trained steps: use one of \[4\]"):
        plan.subset(2)


@pytest.mark.parametrize("move", [renoise_move, ode_move])
def test_a_plan_survives_json(move):
    """from_dict(to_dict(plan)) = plan."""
    for plan in (StepPlan((0.9, 0.3), move), StepPlan((0.9, 0.3), move, whole=True)):
        assert StepPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


# --- roll-outs ---------------------------------------------------------------------------------


class PerfectStudent(nn.Module):
    """The consistency function Phi_{t->0} of the Gaussian: what training strives for."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, cond, *, features=False):
        return Prediction(flow_map(self.schedule, x_t, t, torch.zeros_like(t)))


def law(run, draws):
    """Exact mean and variance of an affine function of ``draws`` independent N(0, 1) numbers.

    ``run(z, fresh)`` is called once on a batch: row 0 has all noises 0, row j has the j-th at 1.
    """
    identity = torch.cat([torch.zeros(1, draws), torch.eye(draws)]).double()
    columns = iter(identity.T[:, :, None])
    values = run(next(columns), lambda: next(columns))[:, 0]
    return values[0].item(), (values[1:] - values[0]).square().sum().item()


def marginal(schedule, t):
    """Mean and variance of x_t."""
    alpha_t, sigma_t = (a.item() for a in schedule(torch.tensor([t], dtype=torch.float64)))
    return alpha_t * MEAN, alpha_t**2 * STD**2 + sigma_t**2


PLAN = StepPlan((1.0, 0.8, 0.5, 0.25))


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["flow", "vp-zero-snr", "trigonometric"])
def test_a_perfect_student_is_rolled_out_along_the_marginals(name, exit_step):
    """With G = Phi_{t->0}, every input is N(alpha_t m, v_t) and every output N(m, S^2): exactly."""
    schedule, cond = SCHEDULES[name], Conditioning.empty(exit_step + 2)
    student = Counted(PerfectStudent(schedule))

    def output(z, fresh):
        return backward_simulation(student, student, schedule, PLAN, exit_step, z, cond, fresh)

    assert law(output, exit_step + 1) == pytest.approx((MEAN, STD**2), abs=1e-9)
    assert len(student.calls) == exit_step + 1
    for time, (x_t, t) in zip(PLAN.times, student.calls, strict=False):
        assert (t == time).all()
        values = x_t[:, 0]
        variance = (values[1:] - values[0]).square().sum().item()
        assert (values[0].item(), variance) == pytest.approx(marginal(schedule, time), abs=1e-9)


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_on_edm_the_marginals_hold_but_for_the_signal_in_the_start(exit_step):
    """x_1 = 80 z instead of N(m, 80^2 + S^2): off by at most m S/80 in the mean, S^2/80^2 in S^2.

    Samples live at sigma_min: v_0 = S^2 + sigma_min^2.
    """
    schedule, cond = EDMSchedule(), Conditioning.empty(exit_step + 2)
    student = Counted(PerfectStudent(schedule))

    def output(z, fresh):
        return backward_simulation(student, student, schedule, PLAN, exit_step, z, cond, fresh)

    mean, variance = law(output, exit_step + 1)
    v_0 = STD**2 + 0.002**2
    assert abs(mean - MEAN) <= 1.001 * MEAN * v_0**0.5 / 80
    assert abs(variance / v_0 - 1) <= 1.001 * (STD / 80) ** 2


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["flow", "vp-zero-snr", "trigonometric"])
def test_a_perfect_student_samples_the_data_in_any_number_of_steps(name, steps):
    """generate with G = Phi_{t->0} and re-noising: N(m, S^2), from one draw for each step."""
    schedule, plan = SCHEDULES[name], StepPlan.uniform(steps)
    cond = Conditioning.empty(steps + 1)

    def output(z, fresh):
        return generate(PerfectStudent(schedule), schedule, plan, z, cond, fresh)

    assert law(output, steps) == pytest.approx((MEAN, STD**2), abs=1e-9)


@every_schedule
def test_exit_step_0_starts_from_exactly_pure_noise(schedule):
    """The only call is G(prior_std z, t = 1): 80 z on EDM, z itself elsewhere; no other draw."""
    student, z = Counted(PerfectStudent(schedule)), noise(4, 1)
    cond, drawn = Conditioning.empty(4), []
    args = (schedule, StepPlan.uniform(3), 0, z, cond, lambda: drawn.append(1))
    backward_simulation(student, None, *args)
    ((x_t, t),) = student.calls
    scale = 80.0 if isinstance(schedule, EDMSchedule) else 1.0
    close(x_t, scale * z, 1e-14)
    assert torch.equal(x_t, start(StepPlan.uniform(3), schedule, z))
    assert torch.equal(t, torch.ones(4).double())
    assert drawn == []


def small_network(schedule, seed=0):
    """An MLP denoiser in three dimensions, float64, with random weights."""
    torch.manual_seed(seed)
    network = MLP(3, width=8, depth=1)
    nn.init.normal_(network.outward[-1].weight)
    return Denoiser(VectorBackbone(network), schedule, PredictsFlow()).double()


@pytest.mark.parametrize("exit_step", [0, 2])
def test_gradient_flows_through_the_last_call_alone(exit_step):
    """d/dtheta of the roll-out = d/dtheta of G(sg[x_t], t): the steps before are constants.

    Even where the frozen generator is the learning one itself.
    """
    schedule, z, cond = FlowSchedule(), noise(4, 3), Conditioning.empty(4)
    network = small_network(schedule)
    before, last = Counted(network), Counted(network)
    draws = Draws(0, 0, "roll-out")
    x0 = backward_simulation(
        last, before, schedule, PLAN, exit_step, z, cond, lambda: draws.normal_like(z)
    )
    assert (len(before.calls), len(last.calls)) == (exit_step, 1)
    ((x_t, t),) = last.calls
    assert not x_t.requires_grad
    parameters = list(network.parameters())
    ours = torch.autograd.grad(x0.square().sum(), parameters)
    alone = torch.autograd.grad(network(x_t, t, cond).x0_hat.square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True))
    assert any(a.abs().max() > 0 for a in ours)


def test_the_roll_out_follows_the_frozen_generator_then_the_learning_one():
    """Steps before the exit are G_frozen's, the last is G's: with two networks, by hand."""
    schedule, z, cond = FlowSchedule(), noise(4, 3), Conditioning.empty(4)
    learning, frozen = small_network(schedule, 1), small_network(schedule, 2)
    eps = noise(2, 4, 3, seed=9)
    fresh = iter(eps)
    x0 = backward_simulation(learning, frozen, schedule, PLAN, 2, z, cond, lambda: next(fresh))
    x_t = z
    for time, after, e in ((1.0, 0.8, eps[0]), (0.8, 0.5, eps[1])):
        x0_hat = frozen(x_t, at(time, z), cond).x0_hat
        x_t = (1 - after) * x0_hat + after * e
    close(x0, learning(x_t, at(0.5, z), cond).x0_hat)


class Scales(nn.Module):
    """x0_hat = a_k x_t at the k-th time of PLAN: a student whose roll-out is a polynomial."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.9, -0.7, 0.6, 1.3]).double())

    def forward(self, x_t, t, cond, *, features=False):
        return Prediction(self.a[PLAN.times.index(t[0].item())] * x_t)


def test_gradient_flows_through_all_steps_of_generate():
    """x_{k+1} = alpha a_k x_k + sigma eps_k, so dx0/da_k = x_k prod_{j > k} alpha a_j: by hand."""
    schedule, z, cond = FlowSchedule(), noise(4, 1), Conditioning.empty(4)
    student, eps = Scales(), noise(3, 4, 1, seed=9)
    fresh = iter(eps)
    x0 = generate(student, schedule, PLAN, z, cond, lambda: next(fresh))
    (ours,) = torch.autograd.grad(x0.sum(), student.a)
    a, inputs = student.a.detach(), [z]
    for k, time in enumerate(PLAN.times[1:]):
        inputs.append((1 - time) * a[k] * inputs[k] + time * eps[k])
    close(x0, a[3] * inputs[3])
    slope = 1.0
    for k in (3, 2, 1, 0):
        close(ours[k], slope * inputs[k].sum())
        slope = slope * a[k] * (1 - PLAN.times[k])


def test_dmd2_through_all_steps_matches_the_last_steps_samples():
    """The generator is called at every time of the plan and only its first input is a constant;
    its critic learns from what the last step makes of the same draws."""
    schedule, cond = FlowSchedule(), Conditioning.empty(4)
    teacher = small_network(schedule).float()
    generator = full("generator", Counted(teacher))
    critic = full("critic", Counted(teacher))
    critic.module.loss_weight = teacher.loss_weight
    config = DMD2Config(through_all_steps=True, gan_weight=0.0)
    method = DMD2(generator, critic, teacher, PLAN, config, sample_shape=(3,))
    assert method.plan.counts() == [4]
    method.generator_loss(Batch(None, cond, Draws(0, 0, "generator")))
    calls, generator.module.calls = generator.module.calls, []
    assert [t[0].item() for _, t in calls] == list(PLAN.times)
    assert [x_t.requires_grad for x_t, _ in calls] == [False, True, True, True]
    method.critic_loss(Batch(None, cond, Draws(0, 0, "critic")))
    ((x_t, t),) = critic.module.calls
    draws = Draws(0, 0, "critic")
    z = draws.normal(4, 3)
    x0 = generate(teacher, schedule, PLAN, z, cond, lambda: draws.normal(4, 3))
    assert torch.equal(t, schedule.nearest(draws.uniform(4, 0.0, 1.0)))
    close(x_t, schedule.add_noise(x0, t, draws.normal(4, 3)), 1e-6)


@pytest.mark.parametrize("steps", [2, 4])
def test_the_exit_step_is_uniform_over_iterations(steps, monkeypatch):
    """j ~ U{0, ..., n - 1}: chi-square of 600 iterations of DMD2 below its 0.1 % quantile."""
    schedule, counts = FlowSchedule(), [0] * steps

    def roll_out(generator, frozen, schedule, plan, exit_step, z, cond, fresh):
        counts[exit_step] += 1
        raise InterruptedError  # nothing else of the loss is needed

    monkeypatch.setattr(rollout_module, "backward_simulation", roll_out)
    teacher = small_network(schedule).float()
    method = DMD2(
        full("generator", teacher),
        full("critic", teacher),
        teacher,
        StepPlan.uniform(steps),
        DMD2Config(gan_weight=0.0),
        sample_shape=(3,),
    )
    for iteration in range(600):
        batch = Batch(None, Conditioning.empty(2), Draws(0, iteration, "generator"))
        with contextlib.suppress(InterruptedError):
            method.generator_loss(batch)
    expected = 600 / steps
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_square < {2: 10.83, 4: 16.27}[steps]
