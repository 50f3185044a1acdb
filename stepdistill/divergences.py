"""f-divergence weights h(r) = r^2 f''(r) of the log density ratio (Xu et al., f-distill, 2025).

For D_f = E_q f(r) with r = p/q (teacher over generator), the gradient of D_f at a generated sample
is the reverse-KL gradient times h(r) (Eq. 6 there). Each function takes ``log_ratio`` = log r of
shape (B,) and returns h of the same shape. Constant factors do not matter: h is renormalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import UserError
from .named import function_named

Divergence = Callable[[Tensor], Tensor]
PROBE = (0.1, 0.5, 1.0, 2.0, 20.0)  # ratios at which a divergence of someone's own is tried


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


DIVERGENCES: dict[str, Divergence] = {
    h.__name__: h
    for h in (
        *(reverse_kl, forward_kl, jensen_shannon, softened_reverse_kl),
        *(squared_hellinger, jeffreys, neyman),
    )
}


def weight_of(f: Callable[[Tensor], Tensor]) -> Divergence:
    """h(r) = r^2 f''(r) of any f, elementwise and twice differentiable by torch."""

    def h(log_ratio: Tensor) -> Tensor:
        with torch.enable_grad():
            r = log_ratio.detach().double().exp().requires_grad_()
            (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), r)
        return (r.detach() ** 2 * second).to(log_ratio)

    return h


def divergence_of(divergence: str, f: str = "") -> Divergence:
    """The h of a name, of "module:function" that gives h, or of one that gives f.

    UserError for a name that is not there, and a function that gives no h: finite, not negative
    and one for each sample.
    """
    if not f and divergence in DIVERGENCES:
        return DIVERGENCES[divergence]
    if not f and ":" not in divergence:
        raise UserError(
            f"divergence={divergence} is none of {', '.join(DIVERGENCES)}, nor module:function"
        )
    own = function_named(f or divergence, "f" if f else "divergence", "a function of a tensor (B,)")
    h: Divergence = weight_of(own) if f else own
    probe = torch.tensor(PROBE).log()
    try:
        found = h(probe)
    except Exception as error:
        raise UserError(
            f"{f or divergence} cannot be called with a tensor (B,): {error}"
        ) from error
    given = isinstance(found, Tensor) and found.shape == probe.shape
    if not given or not bool((found.isfinite() & (found >= 0)).all()):
        shown = found.tolist() if isinstance(found, Tensor) else found
        raise UserError(
            f"{f or divergence} gives no weight h(r) = r^2 f''(r) >= 0 for each sample: at r = "
            f"{list(PROBE)} it gives {shown}"
        )
    return h
