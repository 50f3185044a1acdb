"""f-divergence weights h(r) = r^2 f''(r) of the log density ratio (Xu et al., f-distill, 2025).

For D_f = E_q f(r) with r = p/q (teacher over generator), the gradient of D_f at a generated sample
is the reverse-KL gradient times h(r) (Eq. 6 there). Each function takes ``log_ratio`` = log r of
shape (B,) and returns h of the same shape. Constant factors do not matter: h is renormalised.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """f = -log r, h = 1: DMD."""
    return torch.ones_like(log_ratio)


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f = r log r, h = r."""
    return log_ratio.exp()


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """f = r log r - (r + 1) log((r + 1)/2), h = r/(1 + r)."""
    return torch.sigmoid(log_ratio)


def softened_reverse_kl(log_ratio: Tensor) -> Tensor:
    """f = (r + 1) log((r + 1)/(2 r)), h = 1/(1 + r)."""
    return torch.sigmoid(-log_ratio)


def squared_hellinger(log_ratio: Tensor) -> Tensor:
    """f = (sqrt(r) - 1)^2, h = sqrt(r)/2."""
    return 0.5 * (0.5 * log_ratio).exp()


def jeffreys(log_ratio: Tensor) -> Tensor:
    """f = (r - 1) log r, h = 1 + r."""
    return 1 + log_ratio.exp()


def neyman(log_ratio: Tensor) -> Tensor:
    """f = (r - 1)^2 / r, h = 2/r."""
    return 2 * (-log_ratio).exp()
