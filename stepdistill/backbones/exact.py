"""Exact denoisers of Gaussians and Gaussian mixtures: teachers that need no training.

With x0 ~ sum_k pi_k N(m_k, diag(S_k^2)), the noised density is a mixture of
N(alpha m_k, v_k), v_k = alpha^2 S_k^2 + sigma^2, and the posterior mean is

    x0_hat = sum_k w_k(x_t) [ m_k + (alpha S_k^2 / v_k) (x_t - alpha m_k) ],
    w_k ~ pi_k N(x_t; alpha m_k, v_k).

Each component may be a class, so classifier-free guidance has a closed form too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..denoisers import Prediction
from ..schedules import Schedule, expand_like


class GaussianMixture(nn.Module):
    """A mixture of K diagonal Gaussians in D dimensions, and its exact denoiser.

    ``means``, ``stds`` (K, D), ``weights`` (K,). A conditioning with ``class_labels`` (B,) selects
    one component; label K, or no label, is the whole mixture (the null conditioning).
    """

    def __init__(
        self, schedule: Schedule, means: Tensor, stds: Tensor, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.schedule = schedule
        count = len(means)
        weights = torch.ones(count) if weights is None else weights
        weights = weights.double()
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.double().expand_as(means))
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.means: Tensor
        self.stds: Tensor
        self.log_weights: Tensor

    @property
    def num_classes(self) -> int:
        """K, one class a component."""
        return len(self.means)

    def sample(self, eps: Tensor, component: Tensor) -> Tensor:
        """x0 = m_k + S_k eps for the given components (B,)."""
        return (self.means[component] + self.stds[component] * eps.double()).to(eps.dtype)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        alpha_t, sigma_t = self.schedule(t)
        x = x_t.double()[:, None]  # (B, 1, D) against components (1, K, D)
        alpha = expand_like(alpha_t, x)
        variance = alpha**2 * self.stds**2 + expand_like(sigma_t, x) ** 2
        residual = x - alpha * self.means
        component_x0 = self.means + alpha * self.stds**2 / variance * residual
        responsibility = self._responsibility(residual, variance, cond)
        x0_hat = (responsibility[..., None] * component_x0).sum(dim=1)
        return Prediction(x0_hat.to(x_t.dtype), (x_t,) if features else ())

    def log_density(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """log q(x_t) of the noised mixture (of the class), (B,)."""
        alpha_t, sigma_t = self.schedule(t)
        x = x_t.double()[:, None]
        alpha = expand_like(alpha_t, x)
        variance = alpha**2 * self.stds**2 + expand_like(sigma_t, x) ** 2
        return self._joint(x - alpha * self.means, variance, cond).logsumexp(dim=1)

    def _responsibility(self, residual: Tensor, variance: Tensor, cond: Conditioning) -> Tensor:
        return self._joint(residual, variance, cond).softmax(dim=1)

    def _joint(self, residual: Tensor, variance: Tensor, cond: Conditioning) -> Tensor:
        """log pi_k + log N(x_t; alpha m_k, v_k), (B, K); other components are out for a class."""
        quadratic = -0.5 * (residual**2 / variance + variance.log() + math.log(2 * math.pi))
        joint = quadratic.sum(dim=-1) + self.log_weights
        labels = cond.get("class_labels")
        if labels is None:
            return joint
        component = torch.arange(self.num_classes, device=labels.device)
        out = (labels[:, None] != component) & (labels[:, None] < self.num_classes)
        # a class is one whole component: its weight is 1
        joint = torch.where((labels < self.num_classes)[:, None], joint - self.log_weights, joint)
        return joint.masked_fill(out, -math.inf)


def ring(
    schedule: Schedule, modes: int = 8, radius: float = 2.0, std: float = 0.2
) -> GaussianMixture:
    """``modes`` equal Gaussians on a circle in 2-D: the standard test of mode coverage."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(schedule, means, torch.full_like(means, std))
