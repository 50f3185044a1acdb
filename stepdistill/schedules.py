"""Noise schedules: one equation, stated once.

    x_t = alpha_t * x0 + sigma_t * eps,        eps ~ N(0, I)

``t`` in [0, 1] runs from clean (0) to noise (1) for every schedule. A schedule maps it to
``(alpha_t, sigma_t)``, to the log signal-to-noise ratio and to the *native timestep*, the number
that pretrained networks of that kind are fed:

| schedule              | alpha_t      | sigma_t                       | native timestep        |
|-----------------------|--------------|-------------------------------|------------------------|
| VPSchedule            | sqrt(abar_t) | sqrt(1 - abar_t)              | i, where t = (i + 1)/N |
| EDMSchedule           | 1            | (a + t (b - a))^rho           | sigma_t                |
| FlowSchedule          | 1 - sigma_t  | s t / (1 + (s - 1) t)         | 1000 sigma_t           |
| TrigonometricSchedule | cos(pi t/2)  | sin(pi t/2)                   | pi t/2                 |

All arithmetic is float64; ``expand_like`` casts to the sample's dtype at the point of use.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


def expand_like(a: Tensor, x: Tensor) -> Tensor:
    """Widen per-sample ``a`` of shape (B,) to (B, 1, ..., 1), in the dtype and device of ``x``."""
    return a.to(device=x.device, dtype=x.dtype).reshape(-1, *([1] * (x.ndim - 1)))


class Schedule(ABC):
    """``schedule(t) -> (alpha_t, sigma_t)``, both float64 of the shape of ``t``."""

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t at times ``t`` in [0, 1], any shape."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: the time t at which 2 log(alpha_t / sigma_t) is given."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """The native timestep of ``t``; see the table at the top of this file."""

    @abstractmethod
    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        """The inverse of :meth:`timestep`, exact for every step of a discrete schedule."""

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = 2 log(alpha_t / sigma_t)."""
        alpha_t, sigma_t = self(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def nearest(self, t: Tensor) -> Tensor:
        """The nearest trained time at or above ``t``; a continuous schedule was trained on all."""
        return t

    def prior_std(self, t: Tensor) -> Tensor:
        """Standard deviation of the pure noise a student is started from at time ``t``: 1 here."""
        return torch.ones_like(t, dtype=torch.float64)

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps, for ``t`` of shape (B,)."""
        alpha_t, sigma_t = self(t)
        return expand_like(alpha_t, x0) * x0 + expand_like(sigma_t, x0) * eps

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel q(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I) for s <= t.

        alpha_{t|s} = alpha_t / alpha_s,  sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2
        (Kingma et al., Variational Diffusion Models, Eq. 23-24).
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self(s), self(t)
        alpha_ts = alpha_t / alpha_s
        return alpha_ts, (sigma_t**2 - alpha_ts**2 * sigma_s**2).clamp(min=0).sqrt()

    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_{t|s} x_s + sigma_{t|s} eps: draw from the transition kernel."""
        alpha_ts, sigma_ts = self.transition(s, t)
        return expand_like(alpha_ts, x_s) * x_s + expand_like(sigma_ts, x_s) * eps


class VPSchedule(Schedule):
    """Variance-preserving discrete schedule from a table of betas or of cumulative alphas.

    Step i of N lies at t = (i + 1)/N, where abar_t is the table's i-th entry; t = 0 is clean
    (abar = 1). Between steps abar is linear in t, which also holds at zero terminal SNR.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        if table.ndim != 1 or len(table) < 1:
            raise ValueError(f"alphas_cumprod must be a list of numbers, not {tuple(table.shape)}")
        knots = torch.cat([torch.ones(1, dtype=torch.float64), table])
        if not (knots.diff() < 0).all() or knots[-1] < 0:
            raise ValueError("alphas_cumprod must fall strictly within [0, 1)")
        self.knots = knots

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> VPSchedule:
        """abar_i = prod_{j <= i} (1 - beta_j) (Ho et al., DDPM, Eq. 4)."""
        return cls(torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0))

    @property
    def num_steps(self) -> int:
        """N, the number of training steps in the table."""
        return len(self.knots) - 1

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = self._position(t)
        knots = self.knots.to(t.device)
        low = position.floor().clamp(0, self.num_steps - 1).long()
        abar = knots[low] + (position - low) * (knots[low + 1] - knots[low])
        return abar.sqrt(), (1 - abar).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        abar = torch.sigmoid(log_snr.double())  # VP: abar / (1 - abar) = SNR
        knots = self.knots.to(log_snr.device)
        low = (torch.searchsorted(-knots, -abar) - 1).clamp(0, self.num_steps - 1)
        return (low + (knots[low] - abar) / (knots[low] - knots[low + 1])) / self.num_steps

    def timestep(self, t: Tensor) -> Tensor:
        return self._position(t) - 1

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return (timestep.double() + 1) / self.num_steps

    def nearest(self, t: Tensor) -> Tensor:
        return self._position(t).ceil().clamp(min=1) / self.num_steps

    def _position(self, t: Tensor) -> Tensor:
        """t N, and exactly the step where a float32 time was meant to be one."""
        position = t.double() * self.num_steps
        step = position.round()
        return torch.where((position - step).abs() < 2.4e-7 * self.num_steps, step, position)


class EDMSchedule(Schedule):
    """alpha = 1, sigma_t = (s_min + t (s_max - s_min))^rho with s = sigma^(1/rho).

    Karras et al., Elucidating the Design Space (2022), Eq. 5. ``t = 0`` is sigma_min, not zero.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._low: float = sigma_min ** (1 / rho)
        self._high: float = sigma_max ** (1 / rho)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma_t = (self._low + t.double() * (self._high - self._low)) ** self.rho
        return torch.ones_like(sigma_t), sigma_t

    def time(self, log_snr: Tensor) -> Tensor:
        return self.time_of_timestep(torch.exp(-log_snr.double() / 2))

    def timestep(self, t: Tensor) -> Tensor:
        return self(t)[1]

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        root = timestep.double() ** (1 / self.rho)
        return (root - self._low) / (self._high - self._low)

    def prior_std(self, t: Tensor) -> Tensor:
        return self(t)[1]  # the signal is negligible beside it: x_t = sigma_t z


class FlowSchedule(Schedule):
    """Rectified flow: alpha_t = 1 - sigma_t, sigma_t = s t / (1 + (s - 1) t) with shift s.

    Liu et al. (2022); the shift is Esser et al. (2024), Eq. 23. Shift 1 is sigma_t = t.
    """

    def __init__(self, shift: float = 1.0, num_train_timesteps: int = 1000) -> None:
        if shift <= 0:
            raise ValueError(f"shift must be positive, got {shift}")
        self.shift, self.num_train_timesteps = shift, num_train_timesteps

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        sigma_t = self.shift * t / (1 + (self.shift - 1) * t)
        return 1 - sigma_t, sigma_t

    def time(self, log_snr: Tensor) -> Tensor:
        return self._unshift(torch.sigmoid(-log_snr.double() / 2))  # sigma/(1-sigma) = exp(-l/2)

    def timestep(self, t: Tensor) -> Tensor:
        return self.num_train_timesteps * self(t)[1]

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return self._unshift(timestep.double() / self.num_train_timesteps)

    def _unshift(self, sigma: Tensor) -> Tensor:
        return sigma / (self.shift - (self.shift - 1) * sigma)


class TrigonometricSchedule(Schedule):
    """alpha_t = cos(pi t/2), sigma_t = sin(pi t/2) (Lu and Song, sCM, 2024, section 3)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = self.timestep(t)
        return angle.cos(), angle.sin()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.time_of_timestep(torch.atan(torch.exp(-log_snr.double() / 2)))

    def timestep(self, t: Tensor) -> Tensor:
        return t.double() * (math.pi / 2)

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return timestep.double() / (math.pi / 2)
