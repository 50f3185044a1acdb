"""Pure losses: tensors in, one value a sample (B,) out. The caller weighs and reduces."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .schedules import expand_like

# (x0_hat, x0) -> (B,)
Distance = Callable[[Tensor, Tensor], Tensor]


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the first dimension: (B, *) -> (B,)."""
    return x.flatten(1).mean(dim=1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """mean (x - y)^2."""
    return mean_flat((x - y) ** 2)


def pseudo_huber(x: Tensor, y: Tensor, c: float = 0.0) -> Tensor:
    """sqrt(|x - y|^2 + c^2) - c, with |.| the l2 norm over a sample; c = 0 is the norm itself.

    (Song and Dhariwal 2023, section 3.2; Geng et al., ECT, 2024.) The norm's gradient at x = y is
    taken as zero.
    """
    square = (x - y).flatten(1).square().sum(dim=1)
    if c > 0:
        return (square + c**2).sqrt() - c
    zero = square == 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def clamped_alignment(image: Tensor, text: Tensor, tau: float) -> Tensor:
    """max(0, tau - cos(image, text)), features (B, D): no gradient above tau.

    (Dao et al., SwiftBrush v2, 2024, arXiv:2408.14176.)
    """
    cosine = F.cosine_similarity(image.float(), text.float(), dim=1)
    return F.relu(tau - cosine)


def mean_pseudo_huber(x: Tensor, y: Tensor, c: float = 0.00054) -> Tensor:
    """sqrt(mean (x - y)^2 + c^2) - c: iCT's distance (Song and Dhariwal 2023) over sqrt(d).

    Its gradient is of the size of a squared error's, whatever the number d of dimensions.
    """
    return (squared_error(x, y) + c**2).sqrt() - c


def pseudo_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """1/2 mean (x0 - sg[x0 - g])^2: the loss whose gradient at x0 is g, over the mean's numel."""
    target = (x0 - gradient).detach()
    return 0.5 * squared_error(x0, target)


# --- the gradients of distribution matching --------------------------------------------------
# All are (weight) * (x0_fake - x0_real), with x0_real and x0_fake the teacher's and the critic's
# x0 at the same x_t; see methods.md of the papers: DMD (Yin et al. 2024a), DMD2 (Yin et al. 2024b).


def kl_gradient(x0_real: Tensor, x0_fake: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The exact gradient of KL(q_t || p_t) at x0: alpha (s_fake - s_real) = (a^2/s^2) (f - r).

    ``alpha_t``, ``sigma_t`` are (B,). (Yin et al. 2024a, Eq. 2-3 with score = (a x0_hat - x)/s^2.)
    """
    return expand_like((alpha_t / sigma_t) ** 2, x0_real) * (x0_fake - x0_real)


def dmd_gradient(x0: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """(x0_fake - x0_real) / mean |x0 - x0_real|, the mean taken per sample (DMD, Eq. 8)."""
    scale = mean_flat((x0 - x0_real).abs()).clamp(min=1e-5)
    return (x0_fake - x0_real) / expand_like(scale, x0)


def vsd_gradient(x0_real: Tensor, x0_fake: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """sigma^2 (eps_real - eps_fake) = alpha sigma (x0_fake - x0_real), the weight of VSD.

    (Wang et al., ProlificDreamer, 2023, Eq. 9 with w(t) = sigma^2; SwiftBrush.)
    """
    return expand_like(alpha_t * sigma_t, x0_real) * (x0_fake - x0_real)


def sid_loss(x0: Tensor, x0_real: Tensor, x0_fake: Tensor, alpha: float) -> Tensor:
    """mean (r - f)((r - x0) - alpha (r - f)) / mean |x0 - r|, r = x0_real, f = x0_fake: (B,).

    The divisor is a constant of each sample. (Zhou et al., SiD, 2024: the released loss.)
    """
    scale = mean_flat((x0 - x0_real).abs()).clamp(min=1e-5).detach()
    apart = x0_real - x0_fake
    return mean_flat(apart * (x0_real - x0 - alpha * apart)) / scale


# --- adversarial -------------------------------------------------------------------------------


def gan_generator(logits_fake: Tensor) -> Tensor:
    """Non-saturating logistic: softplus(-D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-logits_fake)


def gan_discriminator(logits_fake: Tensor, logits_real: Tensor) -> Tensor:
    """softplus(D(fake)) + softplus(-D(real))."""
    return F.softplus(logits_fake) + F.softplus(-logits_real)


def approximate_r1(logits_real: Tensor, logits_perturbed: Tensor) -> Tensor:
    """(D(real) - D(real + small noise))^2: R1 by finite differences (Lin et al., APT, 2025)."""
    return (logits_real - logits_perturbed) ** 2
