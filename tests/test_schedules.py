"""Schedules: x_t = alpha_t x0 + sigma_t eps, its inverse, its native timesteps, its kernels.

Each law is checked on every schedule; the tables and grids against diffusers' own schedulers.
"""

import inspect
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from stepdistill.backbones.schedulers import few_step, read
from stepdistill.denoisers import PredictsEDM, PredictsEps, PredictsV
from stepdistill.errors import UserError
from stepdistill.plans import StepPlan, renoise_move
from stepdistill.schedules import (
    EDMSchedule,
    FlowSchedule,
    TrigonometricSchedule,
    VPSchedule,
    expand_like,
)


def linear_betas(steps=1000, start=1e-4, end=0.02):
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps=1000):
    return torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2


VP = {
    "vp-linear": lambda: VPSchedule.from_betas(linear_betas()),
    "vp-scaled-linear": lambda: VPSchedule.from_betas(scaled_linear_betas()),
    "vp-zero-snr": lambda: VPSchedule.from_betas(rescale_zero_terminal_snr(scaled_linear_betas())),
    "vp-4000": lambda: VPSchedule.from_betas(linear_betas(4000, 2.5e-5, 0.005)),
    "vp-one-step": lambda: VPSchedule([0.3]),
}
CONTINUOUS = {
    "edm": EDMSchedule,
    "edm-wide": lambda: EDMSchedule(0.01, 700.0, 5.0),
    "flow": FlowSchedule,
    "flow-shift-3": lambda: FlowSchedule(3.0),
    "flow-shift-half": lambda: FlowSchedule(0.5),
    "trigonometric": TrigonometricSchedule,
}
every_vp = pytest.mark.parametrize("schedule", [make() for make in VP.values()], ids=[*VP])
every_continuous = pytest.mark.parametrize(
    "schedule", [make() for make in CONTINUOUS.values()], ids=[*CONTINUOUS]
)
every_schedule = pytest.mark.parametrize(
    "schedule",
    [make() for make in (VP | CONTINUOUS).values()],
    ids=[*VP, *CONTINUOUS],
)
INSIDE = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)  # between and on the steps


def close(a, b, tolerance=1e-12):
    """Equal to ``tolerance``, absolute near zero and relative elsewhere."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


# --- alpha_t, sigma_t --------------------------------------------------------------------------


@every_vp
def test_vp_table_entry_i_lies_at_time_i_plus_1_over_n(schedule):
    """alpha_t^2 = abar_i and sigma_t^2 = 1 - abar_i at t = (i + 1)/N; alpha = 1 at t = 0."""
    n = schedule.num_steps
    alpha_t, sigma_t = schedule((torch.arange(n, dtype=torch.float64) + 1) / n)
    close(alpha_t**2, schedule.knots[1:], 1e-15)
    close(sigma_t**2, 1 - schedule.knots[1:], 1e-15)
    alpha_0, sigma_0 = schedule(torch.zeros(1))
    assert (alpha_0.item(), sigma_0.item()) == (1.0, 0.0)


@every_vp
def test_vp_preserves_variance_and_is_linear_between_steps(schedule):
    """alpha_t^2 + sigma_t^2 = 1, and alpha^2 halfway between two steps is the mean of theirs."""
    alpha_t, sigma_t = schedule(INSIDE)
    close(alpha_t**2 + sigma_t**2, torch.ones_like(INSIDE))
    n = schedule.num_steps
    middle, _ = schedule((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    close(middle**2, (schedule.knots[1:] + schedule.knots[:-1]) / 2)


def test_vp_from_betas_is_the_cumulative_product():
    """abar_i = prod_{j <= i} (1 - beta_j), multiplied out by hand (DDPM, Eq. 4)."""
    schedule = VPSchedule.from_betas([0.1, 0.2, 0.5])
    alpha_t, _ = schedule(torch.tensor([1, 2, 3]) / 3.0)
    close(alpha_t**2, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5]).double(), 1e-7)


def test_edm_sigma_is_karras_equation_5():
    """sigma_i = (smax^(1/rho) + i/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho at t = 1 - i/(n-1)."""
    n, rho, low, high = 18, 7, 0.002, 80.0
    i = torch.arange(n, dtype=torch.float64)
    eq_5 = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    alpha_t, sigma_t = EDMSchedule(low, high, rho)(1 - i / (n - 1))
    close(sigma_t, eq_5)
    assert torch.equal(alpha_t, torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_flow_shift_multiplies_the_odds(shift):
    """alpha + sigma = 1 and sigma/(1 - sigma) = shift * t/(1 - t); shifts compose by product."""
    alpha_t, sigma_t = FlowSchedule(shift)(INSIDE)
    close(alpha_t + sigma_t, torch.ones_like(INSIDE))
    close(sigma_t / (1 - sigma_t), shift * INSIDE / (1 - INSIDE), 1e-11)
    _, twice = FlowSchedule(2.0)(sigma_t)
    close(twice, FlowSchedule(2 * shift)(INSIDE)[1])


def test_trigonometric_is_a_rotation():
    """alpha = cos(pi t/2), sigma = sin(pi t/2): (cos, sin)(30 degrees) at t = 1/3."""
    alpha_t, sigma_t = TrigonometricSchedule()(torch.tensor([1 / 3], dtype=torch.float64))
    close(alpha_t, torch.tensor([3**0.5 / 2], dtype=torch.float64))
    close(sigma_t, torch.tensor([0.5], dtype=torch.float64))


@every_schedule
def test_a_schedule_takes_any_shape_and_answers_in_float64(schedule):
    """schedule(t)[i, j] = schedule(t[i, j]), float64 whatever the dtype of t."""
    t = torch.tensor([[0.2, 0.4, 0.6], [0.8, 0.9, 1.0]], dtype=torch.float64)
    for value, flat in zip(schedule(t), schedule(t.flatten()), strict=True):
        assert value.dtype == torch.float64
        assert torch.equal(value, flat.reshape(2, 3))
    assert all(value.dtype == torch.float64 for value in schedule(t.float()))


@every_schedule
def test_the_clean_and_the_noisy_end(schedule):
    """alpha_0 = 1; sigma_0 = 0 but for EDM (sigma_min); the prior's deviation is that of x_1."""
    alpha_0, sigma_0 = schedule(torch.zeros(1))
    assert alpha_0.item() == 1.0
    assert sigma_0.item() == pytest.approx(getattr(schedule, "sigma_min", 0.0), abs=1e-12)
    one = torch.ones(1, dtype=torch.float64)
    prior = schedule.prior_std(one).item()
    assert prior == pytest.approx(getattr(schedule, "sigma_max", 1.0), rel=1e-12)


# --- log_snr and its inverse -------------------------------------------------------------------


@every_schedule
def test_log_snr_is_2_log_alpha_over_sigma_and_falls(schedule):
    """lambda_t = 2 log(alpha_t / sigma_t), strictly falling in t."""
    alpha_t, sigma_t = schedule(INSIDE)
    log_snr = schedule.log_snr(INSIDE)
    close(log_snr.exp(), (alpha_t / sigma_t) ** 2, 1e-11)
    assert (log_snr.diff() < 0).all()


@every_schedule
def test_time_inverts_log_snr(schedule):
    """time(lambda_t) = t to 1e-10, at the ends too (where lambda may be infinite)."""
    t = torch.cat([torch.zeros(1), INSIDE, torch.ones(1)]).double()
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-10)


@every_schedule
def test_log_snr_inverts_time(schedule):
    """lambda(time(l)) = l between the ends; VP takes a time right beside a step as the step."""
    high, low = schedule.log_snr(torch.tensor([0.002, 0.998], dtype=torch.float64)).tolist()
    log_snr = torch.linspace(high, low, 101, dtype=torch.float64)
    tolerance = 1e-4 if isinstance(schedule, VPSchedule) else 1e-9
    again = schedule.log_snr(schedule.time(log_snr))
    torch.testing.assert_close(again, log_snr, rtol=0, atol=tolerance)


# --- native timesteps --------------------------------------------------------------------------


@every_vp
def test_every_vp_step_makes_an_exact_round_trip(schedule):
    """timestep((i + 1)/N) = i exactly for all i, also once the time is rounded to float32."""
    steps = torch.arange(schedule.num_steps, dtype=torch.float64)
    t = schedule.time_of_timestep(steps)
    assert torch.equal(schedule.timestep(t), steps)
    assert torch.equal(schedule.timestep(t.float()), steps)
    assert torch.equal(schedule.time_of_timestep(schedule.timestep(t.float())), t)


@every_vp
def test_a_float32_time_of_a_step_has_that_steps_noise_exactly(schedule):
    """schedule(float32((i + 1)/N)) = schedule((i + 1)/N) bit for bit, at zero terminal SNR too."""
    t = schedule.time_of_timestep(torch.arange(schedule.num_steps))
    for rounded, exact in zip(schedule(t.float()), schedule(t), strict=True):
        assert torch.equal(rounded, exact)


@every_vp
def test_vp_interpolates_the_native_timestep_between_steps(schedule):
    """timestep(t) = N t - 1 between steps, so t halfway between steps i and i + 1 is i + 1/2."""
    n = schedule.num_steps
    half = torch.arange(n - 1, dtype=torch.float64) + 0.5
    close(schedule.timestep(schedule.time_of_timestep(half)), half)


@every_continuous
def test_native_times_of_continuous_schedules_make_a_round_trip(schedule):
    """time_of_timestep(timestep(t)) = t and the reverse, at all of 1,000 times."""
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    native = schedule.timestep(t)
    close(schedule.time_of_timestep(native), t)
    close(schedule.timestep(schedule.time_of_timestep(native)), native)
    close(schedule.time_of_timestep(schedule.timestep(t.float())), t, 1e-6)


def test_native_timesteps_are_those_of_the_table():
    """EDM: sigma_t. Flow: 1000 sigma_t. Trigonometric: the angle pi t/2."""
    close(EDMSchedule().timestep(INSIDE), EDMSchedule()(INSIDE)[1])
    close(FlowSchedule(3.0).timestep(INSIDE), 1000 * FlowSchedule(3.0)(INSIDE)[1])
    close(FlowSchedule(1.0, 500).timestep(INSIDE), 500 * INSIDE)
    close(TrigonometricSchedule().timestep(INSIDE), math.pi / 2 * INSIDE)


@every_vp
def test_nearest_is_the_next_trained_step(schedule):
    """nearest(t) is the first step at or above t: a step itself, else the next; 0 gives step 0."""
    n = schedule.num_steps
    steps = schedule.time_of_timestep(torch.arange(n))
    assert torch.equal(schedule.nearest(steps), steps)
    assert torch.equal(schedule.nearest(steps - 0.5 / n), steps)
    assert torch.equal(schedule.nearest(steps - 0.99 / n), steps)
    assert schedule.nearest(torch.zeros(1)).item() == 1 / n


def test_nearest_gives_dmd_its_steps_20_to_980():
    """U(0.02, 0.981] -> steps {20, ..., 980} of 1000, both ends included, each equally likely."""
    schedule = VP["vp-scaled-linear"]()
    u = (torch.arange(961_00, dtype=torch.float64) + 0.5) / 961_00  # a midpoint rule for U(0, 1)
    native = schedule.timestep(schedule.nearest(0.981 - 0.961 * u))
    step, count = native.unique(return_counts=True)
    assert torch.equal(step, torch.arange(20, 981).double())
    assert (count == 100).all()


@every_continuous
def test_nearest_of_a_continuous_schedule_is_the_time_itself(schedule):
    """nearest(t) = t: a continuous schedule was trained at all times."""
    assert torch.equal(schedule.nearest(INSIDE), INSIDE)


# --- the transition kernel ---------------------------------------------------------------------


@every_schedule
def test_transitions_compose(schedule):
    """s -> r -> t is s -> t: a_ts = a_tr a_rs and sig_ts^2 = a_tr^2 sig_rs^2 + sig_tr^2."""
    s, r, t = (
        torch.tensor(times).double() for times in ([0, 0.1, 0.4], [0.3, 0.5, 0.5], [1, 0.9, 0.501])
    )
    (a_rs, s_rs), (a_tr, s_tr), (a_ts, s_ts) = (
        schedule.transition(*pair) for pair in ((s, r), (r, t), (s, t))
    )
    close(a_ts, a_tr * a_rs)
    close(s_ts**2, a_tr**2 * s_rs**2 + s_tr**2, 1e-11)


@every_schedule
def test_a_transition_from_time_0_gives_the_marginal(schedule):
    """0 -> t: a_t0 alpha_0 = alpha_t and a_t0^2 sigma_0^2 + sig_t0^2 = sigma_t^2.

    So the kernel 0 -> t is add_noise itself; on EDM it adds what sigma_0 = sigma_min lacks.
    """
    zero = torch.zeros_like(INSIDE)
    (alpha_0, sigma_0), (alpha_t, sigma_t) = schedule(zero), schedule(INSIDE)
    alpha_t0, sigma_t0 = schedule.transition(zero, INSIDE)
    close(alpha_t0 * alpha_0, alpha_t)
    close(alpha_t0**2 * sigma_0**2 + sigma_t0**2, sigma_t**2)


@every_schedule
def test_a_transition_from_a_time_to_itself_is_nothing(schedule):
    """alpha_{t|t} = 1 and sigma_{t|t} = 0 (never the root of a negative rounding error)."""
    alpha_tt, sigma_tt = schedule.transition(INSIDE, INSIDE)
    close(alpha_tt, torch.ones_like(INSIDE))
    close(sigma_tt / schedule(INSIDE)[1], torch.zeros_like(INSIDE), 1e-7)


@every_schedule
def test_add_noise_and_renoise_are_their_formulas_per_sample(schedule):
    """add_noise = alpha_t x0 + sigma_t eps and renoise = a_ts x_s + sig_ts eps, row by row."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    s, t = torch.tensor([[0.0, 0.2, 0.7], [0.1, 0.5, 1.0]], dtype=torch.float64)
    alpha_t, sigma_t = schedule(t)
    alpha_ts, sigma_ts = schedule.transition(s, t)
    noised, renoised = schedule.add_noise(x, t, eps), schedule.renoise(x, s, t, eps)
    for i in range(3):
        close(noised[i], alpha_t[i] * x[i] + sigma_t[i] * eps[i])
        close(renoised[i], alpha_ts[i] * x[i] + sigma_ts[i] * eps[i])
    half = schedule.add_noise(x.float(), t, eps.float())
    assert half.dtype == torch.float32
    close(half, noised.float(), 1e-5)


def test_expand_like_widens_to_the_sample():
    """(B,) -> (B, 1, ..., 1), in the sample's dtype, for images, vectors and plain numbers."""
    a = torch.arange(3, dtype=torch.float64)
    for shape in ((3, 2, 4, 4), (3, 5), (3,)):
        wide = expand_like(a, torch.zeros(shape))
        assert wide.dtype == torch.float32
        assert wide.shape == (3, *[1] * (len(shape) - 1))


# --- zero terminal SNR and bad tables ----------------------------------------------------------


def test_zero_terminal_snr_ends_in_pure_noise():
    """Lin et al. (2024): alpha_1 = 0, sigma_1 = 1, lambda_1 = -inf and time(-inf) = 1, no NaN."""
    schedule = VP["vp-zero-snr"]()
    one = torch.ones(1, dtype=torch.float64)
    alpha_t, sigma_t = schedule(one)
    assert (alpha_t.item(), sigma_t.item()) == (0.0, 1.0)
    assert schedule.log_snr(one).item() == -math.inf
    assert schedule.time(schedule.log_snr(one)).item() == 1.0
    eps = torch.randn(1, 4, dtype=torch.float64)
    assert torch.equal(schedule.add_noise(torch.full((1, 4), 7.0).double(), one, eps), eps)
    alpha_ts, sigma_ts = schedule.transition(0.5 * one, one)
    assert (alpha_ts.item(), sigma_ts.item()) == (0.0, 1.0)


@pytest.mark.parametrize(
    "table", [[], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, -0.1], [[0.5, 0.4]], [0.5, math.nan]]
)
def test_a_table_that_does_not_fall_within_0_and_1_is_refused(table):
    """1 > abar_0 > abar_1 > ... >= 0, else ValueError."""
    with pytest.raises(ValueError, match="alphas_cumprod"):
        VPSchedule(table)


def test_impossible_ranges_are_refused():
    """EDM needs 0 < sigma_min < sigma_max, flow a shift > 0."""
    for arguments in ((0.0, 80.0), (80.0, 0.002), (1.0, 1.0)):
        with pytest.raises(ValueError, match="sigma_min"):
            EDMSchedule(*arguments)
    for shift in (0.0, -1.0):
        with pytest.raises(ValueError, match="shift"):
            FlowSchedule(shift)


# --- diffusers: variance preserving tables -----------------------------------------------------

TRAINED = np.linspace(0.01, 0.4, 25, dtype=np.float32) ** 1.5
BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    "trained_betas": {"trained_betas": TRAINED, "num_train_timesteps": len(TRAINED)},
}
# add_noise in the coordinates x_t (True) or x_t/alpha_t (False); None: the class has none
VP_SCHEDULERS = {
    "CogVideoXDDIMScheduler": True,
    "CogVideoXDPMScheduler": True,
    "DDIMInverseScheduler": None,
    "DDIMParallelScheduler": True,
    "DDIMScheduler": True,
    "DDPMParallelScheduler": True,
    "DDPMScheduler": True,
    "DEISMultistepScheduler": True,
    "DPMSolverMultistepInverseScheduler": True,
    "DPMSolverMultistepScheduler": True,
    "DPMSolverSinglestepScheduler": True,
    "EulerAncestralDiscreteScheduler": False,
    "EulerDiscreteScheduler": False,
    "HeunDiscreteScheduler": False,
    "KDPM2AncestralDiscreteScheduler": False,
    "KDPM2DiscreteScheduler": False,
    "LCMScheduler": True,
    "LMSDiscreteScheduler": False,
    "PNDMScheduler": True,
    "RePaintScheduler": None,
    "SASolverScheduler": True,
    "TCDScheduler": True,
    "UniPCMultistepScheduler": True,
}


def scheduler(name, **config):
    """diffusers' scheduler ``name``; skips where there is none, or it has no such option."""
    cls = getattr(diffusers, name, None)
    if cls is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    known = inspect.signature(cls.__init__).parameters
    if any(option not in known for option in config):
        pytest.skip(f"{name} has no option {sorted(config.keys() - known.keys())}")
    if "timestep_spacing" in known:
        config["timestep_spacing"] = "trailing"  # steps N, N - N/n, ...: whole steps of the table
    return cls(**config)


def check_table(theirs, in_x_t):
    """alphas_cumprod[i] = alpha^2 at step i, and add_noise is ours at every step tried."""
    ours = VPSchedule(theirs.alphas_cumprod)
    n = len(theirs.alphas_cumprod)
    every = ours.time_of_timestep(torch.arange(n))
    close(ours(every)[0] ** 2, theirs.alphas_cumprod.double(), 1e-12)
    if in_x_t is None:
        return
    if hasattr(theirs, "sigmas"):  # these look noise levels up among the sampling steps
        theirs.set_timesteps(5)
        steps = theirs.timesteps.unique()
        steps = steps[steps == steps.round()]  # KDPM2 adds midpoints of its own between them
    else:
        steps = torch.tensor([0, 1, n // 3, n - 2, n - 1])
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(steps), 3, 4, 4, generator=generator, dtype=torch.float64)
    t = ours.time_of_timestep(steps)
    x_t = ours.add_noise(x0, t, eps)
    scale = 1.0 if in_x_t else expand_like(ours(t)[0], x0)  # x_t or x_t/alpha_t
    theirs_x_t = theirs.add_noise(x0, eps, steps) * scale
    torch.testing.assert_close(theirs_x_t, x_t, rtol=0, atol=5e-6)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", VP_SCHEDULERS)
def test_vp_table_and_noise_equal_those_of_diffusers(name, betas):
    """VPSchedule(alphas_cumprod) noises as they do: x_t = sqrt(abar) x0 + sqrt(1 - abar) eps."""
    config = dict(BETAS[betas])
    if name.startswith("KDPM2"):  # their constructors take a second for 1,000 steps
        config.setdefault("num_train_timesteps", 200)
    check_table(scheduler(name, **config), VP_SCHEDULERS[name])


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("DDPMScheduler", "sigmoid"),
        ("DDPMScheduler", "laplace"),
        ("RePaintScheduler", "sigmoid"),
        ("HeunDiscreteScheduler", "exp"),
        ("UnCLIPScheduler", "squaredcos_cap_v2"),
    ],
)
def test_rarer_beta_tables_equal_those_of_diffusers(name, betas):
    """The tables that only some schedulers know: sigmoid, laplace, exp, and UnCLIP's."""
    in_x_t = VP_SCHEDULERS.get(name, True)
    check_table(scheduler(name, beta_schedule=betas), in_x_t)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "zero_snr", "trained_betas"])
def test_from_betas_multiplies_the_table_that_diffusers_does(betas):
    """prod (1 - beta) in float64 is diffusers' float32 alphas_cumprod to its rounding."""
    theirs = scheduler("DDIMScheduler", **BETAS[betas])
    ours = VPSchedule.from_betas(theirs.betas)
    close(ours.knots[1:], theirs.alphas_cumprod.double(), 1e-6)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_rescaled_tables_end_where_diffusers_ends_them(name):
    """rescale_betas_zero_snr: abar_{N-1} = 0 (DDIM), or 2^-24 where a scheduler divides by it."""
    theirs = scheduler(name, **BETAS["zero_snr"])
    alpha_1, _ = VPSchedule(theirs.alphas_cumprod)(torch.ones(1))
    assert alpha_1.item() ** 2 == pytest.approx(0.0 if name == "DDIMScheduler" else 2.0**-24)


@pytest.mark.parametrize("length", [1000, 400, 1])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_a_students_scheduler_names_the_form_of_its_betas(betas, length):
    """Of a table in float32, whole or cut short: alphas_cumprod to 5e-6, one step from its end."""
    teachers = scheduler("DDPMScheduler", **BETAS[betas])
    theirs = VPSchedule(teachers.alphas_cumprod)
    found = few_step(theirs, PredictsEps(), StepPlan((length / 1000,)))
    assert found.config.trained_betas is None
    assert length == 1 or found.config.beta_schedule == betas
    assert found.config.beta_start == pytest.approx(teachers.config.beta_start, rel=1e-3)
    close(found.alphas_cumprod, theirs.knots[1 : length + 1], 5e-6)
    found.set_timesteps(1)
    assert found.timesteps.tolist() == [length - 1]


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "zero_snr", "trained_betas"])
def test_a_students_scheduler_writes_other_betas_out(betas):
    """No linear form is forced on them."""
    theirs = VPSchedule(scheduler("DDIMScheduler", **BETAS[betas]).alphas_cumprod)
    found = few_step(theirs, PredictsV(), StepPlan())
    close(found.alphas_cumprod, theirs.knots[1:], 5e-6)
    assert len(found.config.trained_betas) == theirs.num_steps


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_eps_at_zero_terminal_snr_is_refused(name):
    """Also of Euler's table, which ends at 2^-24; a cosine table that ends below it is of eps."""
    with pytest.raises(UserError, match=r"zero terminal SNR.*or rescale_betas_zero_snr to false"):
        read(scheduler(name, **BETAS["zero_snr"]))
    cosine, prediction = read(scheduler("DDPMScheduler", **BETAS["squaredcos_cap_v2"]))
    assert cosine.knots[-1] < 2.0**-24
    assert isinstance(prediction, PredictsEps)
    schedule, _ = read(scheduler(name, prediction_type="v_prediction", **BETAS["zero_snr"]))
    assert schedule.knots[-1] <= 2.0**-24


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_noise_levels_are_sent_to_their_pipeline(name):
    """Not to a scheduler of another schedule: VP networks are fed steps."""
    with pytest.raises(UserError, match=rf"{name} states EDM's.*ConsistencyModelPipeline") as found:
        read(scheduler(name))
    assert "DDIM" not in str(found.value)


# --- diffusers: EDM, flow and trigonometric grids ----------------------------------------------


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("rho", [7.0, 5.0])
def test_edm_grid_and_noise_equal_those_of_diffusers(name, rho):
    """n sigmas = sigma(t) at t = 1 - i/(n - 1); timesteps ln(sigma)/4; x_t = x0 + sigma eps."""
    theirs = scheduler(name, sigma_min=0.003, sigma_max=70.0, rho=rho)
    theirs.set_timesteps(18)
    ours = EDMSchedule(0.003, 70.0, rho)
    t = torch.linspace(1, 0, 18, dtype=torch.float64)
    close(ours(t)[1].float(), theirs.sigmas[:-1], 2e-5)
    close(PredictsEDM().timestep(ours, t).float(), theirs.timesteps, 2e-5)
    x0, eps = torch.randn(2, 18, 3, 4, 4)
    close(ours.add_noise(x0, t, eps), theirs.add_noise(x0, eps, theirs.timesteps), 2e-5)


def test_consistency_grid_and_noise_equal_those_of_diffusers():
    """CMStochasticIterative: 40 Karras levels, timesteps 250 ln(sigma), x0 + sigma eps."""
    theirs = scheduler("CMStochasticIterativeScheduler")
    ours, t = EDMSchedule(), torch.linspace(1, 0, 40, dtype=torch.float64)
    close(ours(t)[1], theirs.sigmas)
    close(PredictsEDM(noise_scale=250.0).timestep(ours, t), theirs.timesteps, 1e-10)
    theirs.set_timesteps(timesteps=[30, 17, 0])  # indices of that grid, 0 the noisiest
    chosen = t[[0, 17, 30]]
    close(ours(chosen)[1].float(), theirs.sigmas[:-1], 1e-5)
    x0, eps = torch.randn(2, 3, 1, 4, 4)
    close(ours.add_noise(x0, chosen, eps), theirs.add_noise(x0, eps, theirs.timesteps), 1e-5)


FLOWS = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.4])
def test_flow_grid_and_noise_equal_those_of_diffusers(name, shift):
    """Sigma k of 1000 is sigma(k/1000), timestep 1000 sigma, x_t = sigma eps + (1 - sigma) x0."""
    theirs, ours = scheduler(name, shift=shift), FlowSchedule(shift)
    t = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    close(ours(t)[1].float(), theirs.sigmas, 1e-6)
    close(ours.timestep(t).float(), theirs.timesteps, 1e-6)
    close(ours.time_of_timestep(theirs.timesteps), t, 1e-6)
    x0, eps = torch.randn(2, 1, 3, 4, 4)
    for k in (0, 200, 500, 999):  # each in a fresh scheduler: Heun's keeps its first step
        noised = scheduler(name, shift=shift).scale_noise(x0, theirs.timesteps[k : k + 1], eps)
        close(ours.add_noise(x0, t[k : k + 1], eps), noised, 1e-5)


def test_flow_map_grid_and_noise_equal_those_of_diffusers():
    """FlowMapEuler: sigmas of n steps = shifted 1, 1 - 1/n, ..., 1/n, in float64."""
    theirs, ours = scheduler("FlowMapEulerDiscreteScheduler", shift=5.0), FlowSchedule(5.0)
    theirs.set_timesteps(8)
    t = torch.linspace(1, 0, 9, dtype=torch.float64)
    close(ours(t)[1], theirs.sigmas)
    close(ours.timestep(t[:-1]), theirs.timesteps)
    x0, eps = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    close(ours.add_noise(x0, t[:-1], eps), theirs.scale_noise(x0, theirs.timesteps, eps))


def test_minimax_grid_and_noise_equal_those_of_diffusers():
    """MiniMaxH3: n sigmas = shifted linspace(1, 0, n); its timestep is 1 - sigma."""
    theirs, ours = scheduler("MiniMaxH3Scheduler", shift=12.0), FlowSchedule(12.0)
    theirs.set_timesteps(9)
    t = torch.linspace(1, 0, 9, dtype=torch.float64)
    close(ours(t)[1].float(), theirs.sigmas, 1e-6)
    close(1 - ours(t[:-1])[1], theirs.timesteps, 1e-6)
    x0, eps = torch.randn(2, 8, 3, 4, 4)
    close(ours.add_noise(x0, t[:-1], eps), theirs.scale_noise(x0, theirs.timesteps, eps), 1e-6)


@pytest.mark.parametrize("name", ["HeliosScheduler", "HeliosDMDScheduler"])
def test_helios_grid_equals_that_of_diffusers(name):
    """Helios' training grid is shifted s = k (1 - 1/N)/N, k = N ... 1, with timestep N sigma."""
    theirs, ours = scheduler(name, shift=3.0), FlowSchedule(3.0)
    theirs.init_sigmas()
    t = torch.arange(1000, 0, -1, dtype=torch.float64) * (1 - 1 / 1000) / 1000
    close(ours(t)[1], theirs.sigmas.double(), 1e-6)
    close(ours.timestep(t), theirs.timesteps.double(), 1e-6)


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_dynamic_shifting_is_a_shift_of_exp_mu(mu):
    """use_dynamic_shifting: sigma = e^mu/(e^mu + 1/s - 1), the shift e^mu, for any image size."""
    theirs = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    theirs.set_timesteps(10, mu=mu)
    s = torch.linspace(1, 0.001, 10, dtype=torch.float64)
    close(FlowSchedule(math.exp(mu))(s)[1].float(), theirs.sigmas[:-1], 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_solvers_on_flow_sigmas_noise_as_the_flow_schedule(name):
    """use_flow_sigmas: sigma = shifted k (1 - 1/1000)/n, alpha = 1 - sigma, timestep 1000 sigma."""
    theirs = scheduler(name, use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(10)
    ours, sigmas = FlowSchedule(3.0), theirs.sigmas[: len(theirs.timesteps)].double()
    t = ours.time_of_timestep(1000 * sigmas)
    even = torch.linspace(1, 1 / 1000, 11, dtype=torch.float64)
    grid = even[:-1] if name.startswith("UniPC") else (1 - even).flip(0)[:-1]
    close(t, grid, 2e-6)
    assert (ours.timestep(t) - theirs.timesteps).abs().max() <= 1  # theirs are whole numbers
    if name == "SASolverScheduler":
        return  # its add_noise keeps to the table of betas
    x0, eps = torch.randn(2, len(t), 3, 4, 4)
    noised = theirs.add_noise(x0, eps, theirs.timesteps)
    close(ours.add_noise(x0, t, eps), noised, 1e-5)


def test_trigonometric_steps_equal_those_of_diffusers():
    """SCM: pred_x0 = cos(s) x - sin(s) v, next = cos(t) pred_x0 + sin(t) eps, timesteps are angles.

    With sigma_data = 1; another sigma_data only scales x, x0 and eps alike.
    """
    theirs, ours = scheduler("SCMScheduler", sigma_data=1.0), TrigonometricSchedule()
    times = torch.tensor([0.95, 0.5, 0.2], dtype=torch.float64)
    angles = ours.timestep(times)
    theirs.set_timesteps(2, timesteps=angles, max_timesteps=None)
    x, v = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    prev, pred_x0 = theirs.step(
        v, theirs.timesteps[0], x, torch.Generator().manual_seed(5), return_dict=False
    )
    s, t = times[:1].expand(4), times[1:2].expand(4)
    alpha, sigma = (expand_like(a, x) for a in ours(s))
    x0_hat = PredictsV().x0_hat(x, v, alpha, sigma)
    close(x0_hat, pred_x0, 1e-6)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    close(renoise_move(ours, x, x0_hat, s, t, eps), prev, 1e-6)


def test_the_first_angle_of_the_trigonometric_sampler_is_the_end_of_ours():
    """SCM starts at 1.57080, which is pi/2 to four digits: t = 1."""
    theirs = scheduler("SCMScheduler")
    theirs.set_timesteps(2)
    t = TrigonometricSchedule().time_of_timestep(theirs.timesteps[:1])
    assert t.item() == pytest.approx(1.0, abs=1e-5)
