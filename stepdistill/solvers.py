"""One solver step of the probability-flow ODE, and a sampler of a few lines around it.

A step takes ``x_t`` at times ``t`` to times ``s < t`` (both (B,)) with a denoiser. In the
coordinates y = x/alpha, n = sigma/alpha the ODE reads dy/dn = (y - x0_hat)/n for every schedule
(Karras et al. 2022, Eq. 4), so each solver is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .conditioning import Conditioning
from .denoisers import Denoises
from .schedules import Schedule, expand_like

Step = Callable[[Denoises, Schedule, Tensor, Tensor, Tensor, Conditioning], Tensor]


def ddim(schedule: Schedule, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
    """x_s = alpha_s x0_hat + sigma_s eps_hat, eps_hat = (x_t - alpha_t x0_hat)/sigma_t.

    Song et al., DDIM, 2021, Eq. 12 with eta = 0. Exact in one step for a point mass, holds at zero
    terminal SNR, and equals an Euler step in (y, n).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    eps_hat = (x_t - expand_like(alpha_t, x_t) * x0_hat) / expand_like(sigma_t, x_t)
    return expand_like(alpha_s, x_t) * x0_hat + expand_like(sigma_s, x_t) * eps_hat


def ddim_step(
    denoiser: Denoises, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning
) -> Tensor:
    """One call, order 1: see :func:`ddim`."""
    return ddim(schedule, x_t, denoiser(x_t, t, cond).x0_hat, t, s)


def euler_step(
    denoiser: Denoises, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning
) -> Tensor:
    """One call, order 1: y_s = y_t + (n_s - n_t) (y_t - x0_hat)/n_t. Needs alpha_t > 0."""
    y_t, n_t, _ = _noise_coordinates(schedule, x_t, t)
    _, n_s, alpha_s = _noise_coordinates(schedule, x_t, s)
    slope = (y_t - denoiser(x_t, t, cond).x0_hat) / n_t
    return alpha_s * (y_t + (n_s - n_t) * slope)


def heun_step(
    denoiser: Denoises, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, cond: Conditioning
) -> Tensor:
    """Two calls, order 2 (Karras et al. 2022, Algorithm 1). Needs alpha_t > 0 and sigma_s > 0."""
    y_t, n_t, _ = _noise_coordinates(schedule, x_t, t)
    _, n_s, alpha_s = _noise_coordinates(schedule, x_t, s)
    slope_t = (y_t - denoiser(x_t, t, cond).x0_hat) / n_t
    y_s = y_t + (n_s - n_t) * slope_t
    slope_s = (y_s - denoiser(alpha_s * y_s, s, cond).x0_hat) / n_s
    return alpha_s * (y_t + (n_s - n_t) * (slope_t + slope_s) / 2)


def _noise_coordinates(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, n, alpha) of ``x`` at ``t``: y = x/alpha, n = sigma/alpha, widened like x."""
    alpha_t, sigma_t = schedule(t)
    alpha = expand_like(alpha_t, x)
    return x / alpha, expand_like(sigma_t / alpha_t, x), alpha


@torch.no_grad()
def sample(
    denoiser: Denoises,
    schedule: Schedule,
    x_t: Tensor,
    times: Sequence[float],
    cond: Conditioning,
    step: Step = heun_step,
) -> Tensor:
    """Integrate from ``x_t`` at ``times[0]`` down the decreasing ``times``, then to x0.

    The last step is the denoiser's own x0_hat, as EDM's Heun sampler ends: n steps of Heun cost
    2 n - 1 calls for n times.
    """
    for t_next, t_now in zip(times[1:], times[:-1], strict=True):
        t = torch.full((len(x_t),), t_now, dtype=torch.float64, device=x_t.device)
        s = torch.full_like(t, t_next)
        x_t = step(denoiser, schedule, x_t, t, s, cond)
    t = torch.full((len(x_t),), times[-1], dtype=torch.float64, device=x_t.device)
    return denoiser(x_t, t, cond).x0_hat
