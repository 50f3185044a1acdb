"""Denoisers: whatever a network predicts, callers see x0_hat. Each conversion against its formula.

eps, v and flow also against diffusers' schedulers, EDM's and consistency models' scalings against
theirs; guidance against the closed form of a Gaussian mixture.
"""

import copy
import itertools

import diffusers
import pytest
import torch
from torch import nn

from stepdistill.backbones.exact import GaussianMixture
from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import (
    Backbone,
    Denoiser,
    Guided,
    GuidedWithin,
    Prediction,
    PredictsEDM,
    PredictsEps,
    PredictsFlow,
    PredictsV,
    PredictsX0,
)
from stepdistill.schedules import (
    EDMSchedule,
    FlowSchedule,
    TrigonometricSchedule,
    VPSchedule,
    expand_like,
)

VP = VPSchedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SCHEDULES = {
    "vp": VP,
    "edm": EDMSchedule(),
    "flow": FlowSchedule(3.0),
    "trigonometric": TrigonometricSchedule(),
}
PARAMETRIZATIONS = {
    "x0": PredictsX0(),
    "eps": PredictsEps(),
    "v": PredictsV(),
    "flow": PredictsFlow(),
    "edm": PredictsEDM(),
    "consistency": PredictsEDM(boundary=0.002, noise_scale=250.0),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=[*SCHEDULES])
every_parametrization = pytest.mark.parametrize(
    "parametrization", PARAMETRIZATIONS.values(), ids=[*PARAMETRIZATIONS]
)
NAMED = {"epsilon": PredictsEps(), "sample": PredictsX0(), "v_prediction": PredictsV()}


def close(a, b, tolerance=1e-10):
    """Equal to ``tolerance``, absolute near zero and relative elsewhere."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


def noised(schedule, count=64, seed=0):
    """x0, eps, x_t and widened alpha, sigma at ``count`` times in (0, 1), in float64."""
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, count, dtype=torch.float64)
    alpha, sigma = (expand_like(a, x0) for a in schedule(t))
    return x0, eps, alpha * x0 + sigma * eps, alpha, sigma, t


class Recorder(Backbone):
    """A backbone that keeps what it is fed and answers w x + b."""

    def __init__(self, weight=0.7, bias=0.2):
        super().__init__(nn.Identity())
        self.weight, self.bias, self.calls = nn.Parameter(torch.tensor(weight)), bias, []

    def forward(self, x, timestep, cond):
        self.calls.append((x, timestep, cond))
        return self.network(x) * self.weight.to(x.dtype) + self.bias


def mlp_denoiser(schedule, parametrization, seed=0, **options):
    """A small float64 network with random weights (its last layer would start at zero)."""
    torch.manual_seed(seed)
    network = MLP(3, width=8, depth=3, **options)
    nn.init.normal_(network.outward[-1].weight)
    return Denoiser(VectorBackbone(network), schedule, parametrization).double()


# --- conversions -------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize(("a", "b"), itertools.product(PARAMETRIZATIONS, repeat=2))
def test_every_pair_of_predictions_converts_there_and_back(a, b, schedule):
    """output_a -> x0 -> output_b -> x0 -> output_a is the identity to 1e-10, for any output."""
    a, b = PARAMETRIZATIONS[a], PARAMETRIZATIONS[b]
    output, _, x_t, alpha, sigma, _ = noised(schedule)
    x0 = a.x0_hat(x_t, output, alpha, sigma)
    x0_by_b = b.x0_hat(x_t, b.output(x_t, x0, alpha, sigma), alpha, sigma)
    close(x0_by_b, x0)
    close(a.output(x_t, x0_by_b, alpha, sigma), output)


@every_schedule
@every_parametrization
def test_the_true_output_gives_back_the_sample(parametrization, schedule):
    """x0_hat(x_t, output(x_t, x0)) = x0."""
    x0, _, x_t, alpha, sigma, _ = noised(schedule)
    output = parametrization.output(x_t, x0, alpha, sigma)
    close(parametrization.x0_hat(x_t, output, alpha, sigma), x0)


@every_schedule
def test_the_eps_that_stands_for_a_sample_is_its_noise(schedule):
    """x_t = alpha x0 + sigma eps_hat: PredictsEps.output is the noise that was drawn."""
    x0, eps, x_t, alpha, sigma, _ = noised(schedule)
    close(PredictsEps().output(x_t, x0, alpha, sigma), eps)


@pytest.mark.parametrize("name", ["vp", "trigonometric"])
def test_v_is_alpha_eps_minus_sigma_x0(name):
    """Where alpha^2 + sigma^2 = 1: v = alpha eps - sigma x0, x0 = alpha x - sigma v (Salimans)."""
    x0, eps, x_t, alpha, sigma, _ = noised(SCHEDULES[name])
    v = alpha * eps - sigma * x0
    close(PredictsV().output(x_t, x0, alpha, sigma), v)
    close(PredictsV().x0_hat(x_t, v, alpha, sigma), x0)
    close(sigma * x_t + alpha * v, eps)


@every_schedule
def test_flow_is_eps_minus_x0_on_any_schedule(schedule):
    """u = eps - x0, x0 = (x_t - sigma u)/(alpha + sigma), eps = (x_t + alpha u)/(alpha + sigma)."""
    x0, eps, x_t, alpha, sigma, _ = noised(schedule)
    u = eps - x0
    close(PredictsFlow().output(x_t, x0, alpha, sigma), u)
    close(PredictsFlow().x0_hat(x_t, u, alpha, sigma), x0)
    close((x_t + alpha * u) / (alpha + sigma), eps)


def test_flow_on_a_flow_schedule_is_x_minus_t_u():
    """alpha + sigma = 1, so x0 = x_t - t u."""
    x0, eps, x_t, alpha, sigma, t = noised(FlowSchedule())
    x0_hat = PredictsFlow().x0_hat(x_t, eps - x0, alpha, sigma)
    close(x0_hat, x_t - t[:, None] * (eps - x0))


@every_schedule
@every_parametrization
def test_loss_weight_turns_an_x0_error_into_the_networks_own(parametrization, schedule):
    """w |x0_hat - x0|^2 = |F - output(x0)|^2, the squared error that the network is trained on."""
    x0, wrong, x_t, alpha, sigma, _ = noised(schedule)
    x0_hat = parametrization.x0_hat(x_t, wrong, alpha, sigma)
    target = parametrization.output(x_t, x0, alpha, sigma)
    weight = parametrization.loss_weight(alpha, sigma)
    close(weight * (x0_hat - x0) ** 2, (wrong - target) ** 2, 1e-8)


@every_parametrization
def test_the_denoisers_loss_weight_is_per_sample(parametrization):
    """Denoiser.loss_weight(t) = w(alpha_t, sigma_t), of the shape (B,) of t."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    weight = Denoiser(Recorder(), VP, parametrization).loss_weight(t)
    alpha, sigma = VP(t)
    n = sigma / alpha
    expected = {
        "PredictsX0": torch.ones(3),
        "PredictsEps": n**-2,  # the signal-to-noise ratio
        "PredictsV": n**-2 + 1,  # SNR + 1
        "PredictsFlow": (1 + 1 / n) ** 2,
        "PredictsEDM": (n**2 + 0.25) / ((n - getattr(parametrization, "boundary", 0)) * 0.5) ** 2,
    }[type(parametrization).__name__]
    assert weight.shape == (3,)
    close(weight, expected)


# --- EDM and consistency models ----------------------------------------------------------------


def test_edm_scalings_are_those_of_the_papers_table():
    """Karras et al., Table 1: c_skip = s^2/(n^2 + s^2), c_out = n s c_in, c_noise = ln(n)/4."""
    n, s = EDMSchedule()(torch.linspace(0, 1, 50, dtype=torch.float64))[1], 0.7
    c_skip, c_out, c_in = PredictsEDM(sigma_data=s).scalings(n)
    close(c_skip, s**2 / (n**2 + s**2))
    close(c_out, n * s / (n**2 + s**2).sqrt())
    close(c_in, 1 / (n**2 + s**2).sqrt())
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    close(PredictsEDM(sigma_data=s).timestep(EDMSchedule(), t), n.log() / 4)


def test_edm_preconditioning_keeps_unit_variance():
    """Var(c_in x) = 1 and Var of the target F = 1 for data of deviation s: c_in^2 (n^2 + s^2) = 1,
    ((1 - c_skip)^2 s^2 + c_skip^2 n^2)/c_out^2 = 1 (Karras et al., appendix B.6)."""
    n, s = EDMSchedule()(torch.linspace(0, 1, 50, dtype=torch.float64))[1], 0.5
    c_skip, c_out, c_in = PredictsEDM().scalings(n)
    one = torch.ones_like(n)
    close(c_in**2 * (n**2 + s**2), one)
    close(((1 - c_skip) ** 2 * s**2 + c_skip**2 * n**2) / c_out**2, one)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_preconditioning_equals_that_of_diffusers(name):
    """scale_input, x0_hat and timestep = precondition_inputs, _outputs and _noise at each sigma."""
    theirs, ours = getattr(diffusers, name)(sigma_data=0.7), PredictsEDM(sigma_data=0.7)
    output, _, x_t, alpha, sigma, t = noised(EDMSchedule())
    close(ours.scale_input(x_t, alpha, sigma), theirs.precondition_inputs(x_t, sigma))
    close(ours.x0_hat(x_t, output, alpha, sigma), theirs.precondition_outputs(x_t, output, sigma))
    close(ours.timestep(EDMSchedule(), t), theirs.precondition_noise(sigma[:, 0]))


def test_consistency_scalings_equal_those_of_diffusers():
    """c_skip, c_out with sigma - sigma_min, c_in and 250 ln(sigma) = CMStochasticIterative's."""
    theirs = diffusers.CMStochasticIterativeScheduler()
    ours = PARAMETRIZATIONS["consistency"]
    sigma = theirs.sigmas.double()
    c_skip, c_out, c_in = ours.scalings(sigma)
    their_skip, their_out = theirs.get_scalings_for_boundary_condition(sigma)
    close(c_skip, their_skip)
    close(c_out, their_out)
    x = torch.ones_like(sigma)
    for i, timestep in enumerate(theirs.timesteps):
        theirs._step_index = None
        close(c_in[i], theirs.scale_model_input(x[i], timestep))
    t = EDMSchedule().time_of_timestep(sigma)
    close(ours.timestep(EDMSchedule(), t), theirs.timesteps, 1e-9)


def test_a_consistency_model_is_the_identity_at_sigma_min_for_any_weights():
    """f(x, sigma_min) = x: c_skip = 1 and c_out = 0 there (Song et al. 2023); EDM's form is not."""
    x = torch.randn(5, 3, dtype=torch.float64)
    t, cond = torch.zeros(5, dtype=torch.float64), Conditioning.empty(5)
    for seed in range(3):
        free = mlp_denoiser(EDMSchedule(), PARAMETRIZATIONS["consistency"], seed)
        close(free(x, t, cond).x0_hat, x, 1e-12)
        edm = mlp_denoiser(EDMSchedule(), PredictsEDM(), seed)
        assert (edm(x, t, cond).x0_hat - x).abs().max() > 1e-4


def test_edm_preconditioning_speaks_of_x_over_alpha():
    """One network, two schedules: at equal sigma/alpha, x_t and x_t/alpha have the same x0_hat."""
    edm = mlp_denoiser(EDMSchedule(), PredictsEDM())
    vp = Denoiser(edm.backbone, VP, PredictsEDM())
    x_t = torch.randn(7, 3, dtype=torch.float64)
    t, cond = torch.linspace(0.1, 1, 7, dtype=torch.float64), Conditioning.empty(7)
    t_edm = EDMSchedule().time(VP.log_snr(t))
    expected = edm(x_t / VP(t)[0][:, None], t_edm, cond).x0_hat
    close(vp(x_t, t, cond).x0_hat, expected, 1e-8)


# --- diffusers ---------------------------------------------------------------------------------


def table(name, prediction_type):
    """diffusers' scheduler ``name`` without clipping, and our schedule of its table."""
    config = {"clip_sample": False} if "DDPM" in name or "DDIM" in name else {}
    if name != "DPMSolverSinglestepScheduler":
        config["timestep_spacing"] = "trailing"
    config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = getattr(diffusers, name)(prediction_type=prediction_type, **config)
    return theirs, VPSchedule(theirs.alphas_cumprod)


def at_step(ours, theirs, index):
    """A random x_t and output, our time of the scheduler's step ``index``, and that step."""
    generator = torch.Generator().manual_seed(index)
    x_t, output = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    native = theirs.timesteps[index]
    t = ours.time_of_timestep(native[None].double())
    alpha, sigma = (expand_like(a, x_t) for a in ours(t))
    return x_t, output, alpha, sigma, native


@pytest.mark.parametrize("prediction", NAMED)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "DDIMParallelScheduler"])
def test_x0_hat_equals_pred_original_sample_of_diffusers(name, prediction):
    """eps: (x - sigma e)/alpha, sample: itself, v: alpha x - sigma v, as DDPM and DDIM convert."""
    theirs, ours = table(name, prediction)
    theirs.set_timesteps(10)
    for index in (0, 4, 9):
        x_t, output, alpha, sigma, native = at_step(ours, theirs, index)
        x0_hat = NAMED[prediction].x0_hat(x_t, output, alpha, sigma)
        close(x0_hat, theirs.step(output, native, x_t).pred_original_sample, 1e-5)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        *itertools.product(["EulerDiscreteScheduler", "HeunDiscreteScheduler"], NAMED),
        ("EulerAncestralDiscreteScheduler", "epsilon"),
        ("EulerAncestralDiscreteScheduler", "v_prediction"),
    ],
)
def test_x0_hat_equals_pred_original_sample_in_sigma_coordinates(name, prediction):
    """The schedulers that hold x_t/alpha_t convert to the same x0."""
    theirs, ours = table(name, prediction)
    theirs.set_timesteps(10)
    x_t, output, alpha, sigma, native = at_step(ours, theirs, 0)
    theirs.scale_model_input(x_t / alpha, native)
    x0_hat = NAMED[prediction].x0_hat(x_t, output, alpha, sigma)
    close(x0_hat, theirs.step(output, native, x_t / alpha).pred_original_sample, 1e-5)


@pytest.mark.parametrize("prediction", NAMED)
@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverSinglestepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_x0_hat_equals_convert_model_output_of_diffusers(name, prediction):
    """Solvers of the data prediction convert the network's output to the same x0."""
    theirs, ours = table(name, prediction)
    theirs.set_timesteps(10)
    for index in (0, 4, 9):
        x_t, output, alpha, sigma, native = at_step(ours, theirs, index)
        theirs._init_step_index(native)
        x0_hat = NAMED[prediction].x0_hat(x_t, output, alpha, sigma)
        close(x0_hat, theirs.convert_model_output(output, sample=x_t), 2e-5)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_flow_predictions_convert_as_in_diffusers(name):
    """prediction_type flow_prediction: x0 = x - sigma u on a shifted flow schedule."""
    theirs, ours = (
        getattr(diffusers, name)(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        FlowSchedule(3.0),
    )
    theirs.set_timesteps(10)
    x_t, output = torch.randn(2, 4, 3, dtype=torch.float64)
    theirs._step_index = 4
    t = ours.time_of_timestep(1000 * theirs.sigmas[4].double())[None]
    alpha, sigma = (expand_like(a, x_t) for a in ours(t))
    x0_hat = PredictsFlow().x0_hat(x_t, output, alpha, sigma)
    close(x0_hat, theirs.convert_model_output(output, sample=x_t), 1e-6)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_the_v_target_equals_get_velocity_of_diffusers(name):
    """PredictsV.output of a true pair = sqrt(abar) eps - sqrt(1 - abar) x0."""
    theirs, ours = table(name, "v_prediction")
    x0, eps = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    steps = torch.tensor([0, 100, 500, 999])
    t = ours.time_of_timestep(steps)
    alpha, sigma = (expand_like(a, x0) for a in ours(t))
    v = PredictsV().output(ours.add_noise(x0, t, eps), x0, alpha, sigma)
    close(v, theirs.get_velocity(x0, eps, steps), 1e-5)


# --- Denoiser ----------------------------------------------------------------------------------


@every_schedule
@every_parametrization
def test_a_denoiser_feeds_the_network_its_own_input_and_time(parametrization, schedule):
    """x0_hat = convert(x_t, F(c_in x_t; native timestep), alpha_t, sigma_t), row by row."""
    backbone = Recorder()
    denoiser = Denoiser(backbone, schedule, parametrization)
    _, _, x_t, alpha, sigma, t = noised(schedule, 9)
    cond = Conditioning({"class_labels": torch.arange(9)})
    x0_hat = denoiser(x_t, t, cond).x0_hat
    ((seen, timestep, seen_cond),) = backbone.calls
    for i in range(9):
        n = (sigma / alpha)[i]
        c_in = (n**2 + 0.25) ** -0.5 / alpha[i] if "EDM" in repr(parametrization) else 1.0
        close(seen[i], c_in * x_t[i])
        output = 0.7 * seen[i] + 0.2
        close(x0_hat[i], parametrization.x0_hat(x_t[i], output, alpha[i], sigma[i]), 1e-6)
    assert timestep.shape == (9,)
    close(timestep, parametrization.timestep(schedule, t))
    assert seen_cond is cond


def test_the_conversion_keeps_the_precision_of_x_t():
    """A bfloat16 network at alpha = 0.07: x0_hat is float32 and exact for the output it gave."""

    class Half(Recorder):
        def forward(self, x, timestep, cond):
            self.calls.append(timestep)
            return torch.full_like(x, 0.3, dtype=torch.bfloat16)

    backbone, t = Half(), torch.ones(2, dtype=torch.float64)
    x_t = torch.randn(2, 3)
    x0_hat = Denoiser(backbone, VP, PredictsEps())(x_t, t, Conditioning.empty(2)).x0_hat
    (alpha,), (sigma,) = (a[:1].float() for a in VP(t))
    assert x0_hat.dtype == backbone.calls[0].dtype == torch.float32
    close(x0_hat, (x_t - sigma * torch.tensor(0.3).bfloat16().float()) / alpha, 1e-6)


# --- guidance ----------------------------------------------------------------------------------

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.0], [0.2, -1.2]])
STDS = torch.tensor([[0.5, 0.3], [0.4, 0.6], [0.7, 0.2]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
NULL = Conditioning({"class_labels": torch.tensor([3])})  # label K is the whole mixture


def mixture(schedule):
    """Three classes, one Gaussian each."""
    return GaussianMixture(schedule, MEANS, STDS, WEIGHTS)


class Counted(nn.Module):
    """Counts the calls of a denoiser and keeps their batch sizes."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.batches = denoiser, []

    def forward(self, x_t, t, cond, *, features=False):
        self.batches.append((len(x_t), len(t), cond.batch_size))
        return self.denoiser(x_t, t, cond, features=features)


def guided_batch(count=6):
    """x_t, times and labels 0, 1, 2, 0, ..."""
    x_t = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.linspace(0.2, 0.9, count, dtype=torch.float64)
    return x_t, t, Conditioning({"class_labels": torch.arange(count) % 3})


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.75, 4.0])
def test_guidance_is_null_plus_scale_times_the_difference(scale, schedule):
    """x0 = null + w (cond - null) with the closed forms of a mixture: a class is one Gaussian,

    x0_k = m_k + alpha S_k^2/v_k (x - alpha m_k), and null is their mean with weights
    pi_k N(x; alpha m_k, v_k).
    """
    x_t, t, cond = guided_batch()
    x0_hat = Guided(mixture(schedule), scale, NULL)(x_t, t, cond).x0_hat
    for i in range(len(x_t)):
        alpha, sigma = (a[i].item() for a in schedule(t))
        v = alpha**2 * STDS.double() ** 2 + sigma**2
        each = MEANS + alpha * STDS**2 / v * (x_t[i] - alpha * MEANS)
        density = torch.exp(-((x_t[i] - alpha * MEANS) ** 2) / (2 * v)) / v.sqrt()
        weights = WEIGHTS * density.prod(dim=1)
        null = (weights[:, None] * each).sum(0) / weights.sum()
        close(x0_hat[i], null + scale * (each[i % 3] - null), 1e-6)


def test_scale_1_is_off_and_scale_0_is_null():
    """w = 1 gives the conditional x0, w = 0 the unconditional one (Imagen's convention)."""
    x_t, t, cond = guided_batch()
    exact = mixture(VP)
    close(Guided(exact, 1.0, NULL)(x_t, t, cond).x0_hat, exact(x_t, t, cond).x0_hat)
    null = exact(x_t, t, NULL.expand(6)).x0_hat
    close(Guided(exact, 0.0, NULL)(x_t, t, cond).x0_hat, null)


def test_the_guided_score_is_that_of_the_sharpened_density():
    """(alpha x0 - x)/sigma^2 = grad[(1 - w) log p(x) + w log p(x | c)], by autograd."""
    x_t, t, cond = guided_batch()
    exact, w = mixture(VP), 2.5
    x0_hat = Guided(exact, w, NULL)(x_t, t, cond).x0_hat
    x_t.requires_grad_()
    log = (1 - w) * exact.log_density(x_t, t, NULL.expand(6)) + w * exact.log_density(x_t, t, cond)
    (score,) = torch.autograd.grad(log.sum(), x_t)
    alpha, sigma = (expand_like(a, x_t) for a in VP(t))
    close((alpha * x0_hat - x_t) / sigma**2, score, 1e-9)


@every_parametrization
def test_guidance_is_the_same_in_every_prediction_space(parametrization):
    """output(guided) = output(null) + w (output(cond) - output(null)): conversions are affine."""
    x_t, t, cond = guided_batch()
    exact, w = mixture(VP), 3.0
    alpha, sigma = (expand_like(a, x_t) for a in VP(t))
    guided, conditional, null = (
        parametrization.output(x_t, denoiser(x_t, t, c).x0_hat, alpha, sigma)
        for denoiser, c in ((Guided(exact, w, NULL), cond), (exact, cond), (exact, NULL.expand(6)))
    )
    close(guided, null + w * (conditional - null))


def test_guidance_is_one_batched_call():
    """cond and null run as one call of 2 B samples, whatever the scale."""
    x_t, t, cond = guided_batch()
    counted = Counted(mixture(VP))
    Guided(counted, 3.0, NULL)(x_t, t, cond)
    assert counted.batches == [(12, 12, 12)]


@pytest.mark.parametrize("interval", [(0.3, 0.6), (0.0, 0.6), (0.3, 1.0), (0.98, 0.99)], ids=str)
def test_guidance_within_an_interval_of_times(interval):
    """Rows with low < t <= high are guided, the others are the denoiser's, in their own order."""
    x_t, _, cond = guided_batch()
    t = torch.tensor([0.9, 0.6, 0.1, 0.45, 0.3, 0.7], dtype=torch.float64)
    exact = Counted(mixture(VP))
    guided = Guided(exact, 3.0, NULL)
    inside = (t > interval[0]) & (t <= interval[1])
    whole, plain = guided(x_t, t, cond).x0_hat, exact(x_t, t, cond).x0_hat
    assert ((whole - plain).abs().flatten(1).amax(1) > 1e-3).all()
    exact.batches.clear()
    found = GuidedWithin(guided, exact, interval)(x_t, t, cond).x0_hat
    for i in range(6):
        close(found[i], (whole if inside[i] else plain)[i])
    calls = [2 * int(inside.sum()), int((~inside).sum())]
    assert [size for size, *_ in exact.batches] == [n for n in calls if n]


def test_guidance_within_an_interval_keeps_the_features():
    """Row i of the features is sample i's under its own condition."""
    x_t, t, _ = guided_batch()
    x_t = torch.cat([x_t, x_t[:, :1]], dim=1)
    cond = Conditioning({"class_labels": torch.arange(6) % 3})
    denoiser = mlp_denoiser(VP, PredictsEps(), num_class_embeds=4)
    within = GuidedWithin(Guided(denoiser, 2.0, NULL), denoiser, (0.2, 0.6))
    found = within(x_t, t, cond, features=True).features
    (wanted,) = denoiser(x_t, t, cond, features=True).features
    (tapped,) = found
    close(tapped, wanted)


def test_guidance_takes_a_scale_per_sample():
    """guidance_scale (B,): each row is guided by its own w."""
    x_t, t, cond = guided_batch()
    scales = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    together = Guided(mixture(VP), scales, NULL)(x_t, t, cond).x0_hat
    for i, scale in enumerate(scales.tolist()):
        alone = Guided(mixture(VP), scale, NULL)(x_t, t, cond).x0_hat
        assert torch.equal(together[i], alone[i])


def test_guided_features_are_those_of_the_conditional_half():
    """features of Guided = features of the denoiser under cond, not under null."""
    x_t, t, _ = guided_batch()
    x_t = torch.cat([x_t, x_t[:, :1]], dim=1)
    cond = Conditioning({"class_labels": torch.arange(6) % 3})
    denoiser = mlp_denoiser(VP, PredictsEps(), num_class_embeds=4)
    features = Guided(denoiser, 2.0, NULL)(x_t, t, cond, features=True).features
    (expected,) = denoiser(x_t, t, cond, features=True).features
    (tapped,) = features
    close(tapped, expected)


# --- feature taps ------------------------------------------------------------------------------


def tapped_batch():
    """x_t, t and an empty conditioning for :func:`mlp_denoiser`."""
    x_t = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x_t, torch.linspace(0.1, 1, 4, dtype=torch.float64), Conditioning.empty(4)


def test_a_tap_gives_what_a_hook_sees():
    """features = the output of the tapped block, as an ordinary forward hook records it."""
    denoiser, seen = mlp_denoiser(VP, PredictsV()), []
    block = denoiser.backbone.network.blocks[1]
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    prediction = denoiser(*tapped_batch(), features=True)
    handle.remove()
    (feature,) = prediction.features
    assert feature is seen[0]
    assert feature.shape == (4, 8)


def test_taps_are_off_unless_asked_for():
    """features = () by default, x0_hat is the same bit for bit, and no activation is kept."""
    denoiser, batch = mlp_denoiser(VP, PredictsV()), tapped_batch()
    with_features, without = denoiser(*batch, features=True), denoiser(*batch)
    assert without == Prediction(without.x0_hat, ())
    assert torch.equal(without.x0_hat, with_features.x0_hat)
    assert all(tap.value is None for tap in denoiser.backbone.taps)


def test_several_taps_come_in_order():
    """Features come back in the order in which the modules were tapped, not called."""
    denoiser, batch = mlp_denoiser(VP, PredictsV()), tapped_batch()
    network = denoiser.backbone.network
    denoiser.backbone.tap(network.blocks[2])
    denoiser.backbone.tap(network.blocks[0])
    middle, last, first = denoiser(*batch, features=True).features
    h = network.inward(batch[0]) + network.time(_time_features(denoiser, batch))
    close(first, network.blocks[0](h))
    h = h + first
    close(middle, network.blocks[1](h))
    close(last, network.blocks[2](h + middle))


def _time_features(denoiser, batch):
    """What MLP makes of the native timestep."""
    timestep = denoiser.parametrization.timestep(denoiser.schedule, batch[1])
    angle = timestep[:, None] * (2.0 ** torch.arange(8).double() * torch.pi / 8)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def test_a_copy_takes_its_own_tap_along():
    """deepcopy: the copy's features come from the copy, and never land in the original's tap."""
    original = mlp_denoiser(VP, PredictsV())
    twin, batch = copy.deepcopy(original), tapped_batch()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    (own,), (other,) = (d(*batch, features=True).features for d in (original, twin))
    assert not torch.allclose(own, other)
    assert twin.backbone.taps[0] is not original.backbone.taps[0]
    hooks = list(twin.backbone.network.blocks[1]._forward_hooks.values())
    assert hooks == twin.backbone.taps
    (again,) = original(*batch, features=True).features
    assert torch.equal(own, again)


def test_features_carry_gradients_to_weights_and_inputs():
    """d features/d x_t and d features/d theta: up to the tapped block, nothing behind it."""
    denoiser, (x_t, t, cond) = mlp_denoiser(VP, PredictsV()), tapped_batch()
    x_t.requires_grad_()
    (feature,) = denoiser(x_t, t, cond, features=True).features
    feature.square().sum().backward()
    network = denoiser.backbone.network
    assert x_t.grad.abs().min() > 0
    assert network.blocks[1][3].weight.grad.abs().max() > 0
    assert network.inward.weight.grad.abs().max() > 0
    assert network.blocks[2][3].weight.grad is None
    step = 1e-6 * torch.ones_like(x_t[0])
    moved = torch.stack([x_t.detach()[0] + step, x_t.detach()[0] - step])
    (ends,) = denoiser(moved, t[:1].expand(2), cond.select(slice(0, 2)), features=True).features
    slope = (ends[0].square().sum() - ends[1].square().sum()) / 2e-6
    close(slope.detach(), x_t.grad[0].sum(), 1e-6)


def test_a_tap_on_a_tuple_takes_its_first_entry():
    """Blocks that return (hidden, residuals): the hidden state is the feature."""

    class Two(nn.Module):
        def forward(self, x):
            return 2 * x, x

    class Pair(Backbone):
        def __init__(self):
            super().__init__(Two())
            self.tap(self.network)

        def forward(self, x, timestep, cond):
            return self.network(x)[1]

    x_t, t, cond = tapped_batch()
    prediction = Denoiser(Pair(), VP, PredictsX0())(x_t, t, cond, features=True)
    assert torch.equal(prediction.features[0], 2 * x_t)


def test_a_tapped_module_that_is_not_called_is_an_error():
    """No stale features: a tap without a value in this pass raises instead of answering."""
    backbone = Recorder()
    backbone.tap(nn.Linear(3, 3))
    denoiser = Denoiser(backbone, VP, PredictsX0())
    with pytest.raises(RuntimeError, match="was not called"):
        denoiser(*tapped_batch(), features=True)
    assert denoiser(*tapped_batch()).features == ()
