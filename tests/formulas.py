"""The losses of each method, evaluated by hand: plain arithmetic on what its networks say.

Written from the papers' formulas beside the library, not with its losses: the same numbers are
drawn in the same order, and networks are asked one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepdistill.conditioning import Conditioning
from stepdistill.draws import Draws
from stepdistill.methods.base import Batch
from stepdistill.schedules import EDMSchedule
from stepdistill.teachers import Teacher

Noised = tuple[Tensor, Tensor, Conditioning]


class Hand:
    """``method`` over ``teacher``, on one batch."""

    def __init__(self, method: Any, teacher: Teacher, batch: Batch) -> None:
        own = batch.draws
        self.draws = Draws(own.seed, own.iteration, own.purpose, own.shards)
        self.method, self.config = method, method.config
        self.teacher, self.null = teacher.denoiser, teacher.null_cond
        self.schedule, self.cond = teacher.denoiser.schedule, batch.cond
        self.x0, self.z, self.count = batch.x0, batch.z, batch.cond.batch_size
        self.generator = method.roles["generator"].frozen

    @property
    def critic(self) -> Any:
        return self.method.roles["critic"].frozen

    # --- samples and noise ---------------------------------------------------------------------

    def at(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, to multiply samples by."""
        t = torch.as_tensor(t, dtype=torch.float64).expand(self.count)
        alpha, sigma = self.schedule(t)
        return alpha.float().reshape(-1, 1, 1, 1), sigma.float().reshape(-1, 1, 1, 1)

    def from_noise(self, z: Tensor, j: int, cond: Conditioning) -> Tensor:
        """G's x0 at its step ``j``, noised on the way from x0 to each next time."""
        times = self.method.plan.times
        edm = isinstance(self.schedule, EDMSchedule)
        x_t = z * self.at(times[0])[1] if edm else z
        for i in range(j + 1):
            t = torch.full((self.count,), times[i], dtype=torch.float64)
            x0: Tensor = self.generator(x_t, t, cond).x0_hat
            if i < j:
                (alpha, sigma), (alpha_0, sigma_0) = self.at(times[i + 1]), self.at(0.0)
                kept = alpha / alpha_0
                spread = (sigma**2 - kept**2 * sigma_0**2).sqrt()
                x_t = kept * x0 + spread * self.draws.normal(*z.shape)
        return x0

    def student(self, cond: Conditioning | None = None) -> Tensor:
        assert self.x0 is not None
        z = self.draws.normal(*self.x0.shape)
        j = self.draws.shared_index(self.method.plan.steps)
        return self.from_noise(z, j, self.cond if cond is None else cond)

    def times(self, matching: bool) -> Tensor:
        """Of the matching, or of the critic."""
        config = self.config
        law = config.matching_log_normal if matching else config.critic_log_normal
        span = (config.t_min, config.t_max) if matching else (0.0, 1.0)
        return self.drawn(law, span)

    def drawn(self, law: tuple[float, float] | None, span: tuple[float, float]) -> Tensor:
        """ln sigma/alpha ~ N(law), or t ~ U(span], at a time that the teacher was trained on."""
        if law is None:
            t = self.draws.uniform(self.count, *span)
        else:
            level = law[0] + law[1] * self.draws.normal(self.count, dtype=torch.float64)
            t = self.schedule.time(-2 * level).clamp(0, 1)
        return self.schedule.nearest(t)

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor | None = None) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * x0 + sigma * (self.draws.normal_like(x0) if eps is None else eps)

    # --- what networks say ---------------------------------------------------------------------

    def says(self, denoiser: Any, seen: Noised, w: float | Tensor = 1.0) -> Tensor:
        """x0_null + w (x0_cond - x0_null), of two calls."""
        x_t, t, cond = seen
        x0: Tensor = denoiser(x_t, t, cond).x0_hat
        if isinstance(w, float) and w == 1.0:
            return x0
        assert self.null is not None
        untold = cond.replace(self.null.expand(self.count))
        x0_null: Tensor = denoiser(x_t, t, untold).x0_hat
        w = torch.as_tensor(w, dtype=x0.dtype).expand(self.count).reshape(-1, 1, 1, 1)
        return x0_null + w * (x0 - x0_null)

    def logit(self, trunk: Any, seen: Noised) -> Tensor:
        found: Tensor = self.method.roles["head"].frozen(trunk(*seen, features=True).features)
        return found

    def own_error(self, x0_hat: Tensor, x0: Tensor, seen: Noised) -> Tensor:
        """(B,): the squared error in what the critic's network predicts: eps, v, a flow, F."""
        (alpha, sigma), output = self.at(seen[1]), self.teacher.parametrization.output
        apart = output(seen[0], x0_hat, alpha, sigma) - output(seen[0], x0, alpha, sigma)
        return mean(apart**2)

    def vp(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t once x_t is divided by the root of the sum of their squares."""
        alpha, sigma = self.at(t)
        return alpha / (alpha**2 + sigma**2).sqrt(), sigma / (alpha**2 + sigma**2).sqrt()


def mean(x: Tensor) -> Tensor:
    """Over all but the batch."""
    return x.flatten(1).mean(1)


def pseudo(gradient: Tensor) -> Tensor:
    """The value of the loss whose gradient is given: half its mean square."""
    return 0.5 * (gradient**2).mean()


def normalised(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    return (fake - real) / mean((x0 - real).abs()).reshape(-1, 1, 1, 1)


def identity(x0: Tensor, real: Tensor, fake: Tensor, a: float) -> Tensor:
    """SiD's loss of two scores, meaned."""
    inner = mean((real - fake) * ((real - x0) - a * (real - fake)))
    return (inner / mean((x0 - real).abs())).mean()


def shared(hand: Hand) -> tuple[Tensor, Noised]:
    """A student's samples, and these noised to matching times."""
    x0 = hand.student()
    t = hand.times(matching=True)
    return x0, (hand.noised(x0, t), t, hand.cond)


def followed(hand: Hand) -> tuple[Tensor, Noised]:
    """The same, noised to the critic's times."""
    x0 = hand.student()
    t = hand.times(matching=False)
    return x0, (hand.noised(x0, t), t, hand.cond)


def denoising(hand: Hand) -> Tensor:
    x0, seen = followed(hand)
    return hand.own_error(hand.says(hand.critic, seen), x0, seen).mean()


# --- the methods -------------------------------------------------------------------------------


def dmd2(hand: Hand) -> Tensor:
    config, (x0, seen) = hand.config, shared(hand)
    t = hand.times(matching=False)
    judged = (hand.noised(x0, t), t, hand.cond)
    gan = F.softplus(-hand.logit(hand.critic, judged)).mean()
    real = hand.says(hand.teacher, seen, config.guidance_scale)
    return pseudo(normalised(x0, real, hand.says(hand.critic, seen))) + config.gan_weight * gan


def dmd2_critic(hand: Hand, own_noise: bool = True) -> Tensor:
    x0, seen = followed(hand)
    fake = seen
    if own_noise:
        t = hand.times(matching=False)
        fake = (hand.noised(x0, t), t, hand.cond)
    assert hand.x0 is not None
    real = (hand.noised(hand.x0, fake[1]), fake[1], hand.cond)
    by_fake, by_real = hand.logit(hand.critic, fake), hand.logit(hand.critic, real)
    told_apart = (F.softplus(by_fake) + F.softplus(-by_real)).mean()
    error = hand.own_error(hand.says(hand.critic, seen), x0, seen).mean()
    return error + hand.config.gan_critic_weight * told_apart


def fdiv(hand: Hand) -> Tensor:
    config, (x0, seen) = hand.config, shared(hand)
    means = {name: own.means for name, own in hand.method.statistics.items()}
    logit = hand.logit(hand.critic, seen)
    place = (seen[1][:, None] > hand.method.edges).sum(1)
    r = logit.exp().clamp(0.1, 20.0) / means["ratio"][place]
    weight = (r / (1 + r) / means["h"]).reshape(-1, 1, 1, 1)  # Jensen-Shannon
    real = hand.says(hand.teacher, seen, config.guidance_scale)
    gradient = weight * normalised(x0, real, hand.says(hand.critic, seen))
    return pseudo(gradient) + config.gan_weight * F.softplus(-logit).mean()


def fdiv_critic(hand: Hand) -> Tensor:
    return dmd2_critic(hand, own_noise=False)


def dmd(hand: Hand) -> Tensor:
    config, (x0, seen) = hand.config, shared(hand)
    real = hand.says(hand.teacher, seen, config.guidance_scale)
    matching = pseudo(normalised(x0, real, hand.says(hand.critic, seen)))
    assert hand.x0 is not None
    assert hand.z is not None
    pairs = hand.from_noise(hand.z, 0, hand.cond)
    square = (pairs - hand.x0).flatten(1).square().mean(dim=1)
    distance = ((square + 0.00054**2).sqrt() - 0.00054).mean()  # iCT's c
    return matching + config.regression_weight * distance


def vsd(hand: Hand) -> Tensor:
    _, seen = shared(hand)
    return guided_noises(hand, seen, hand.config.guidance_scale)


def snoopi(hand: Hand) -> Tensor:
    _, seen = shared(hand)
    return guided_noises(hand, seen, hand.draws.uniform(hand.count, *hand.config.guidance_range))


def guided_noises(hand: Hand, seen: Noised, w: float | Tensor) -> Tensor:
    """sigma^2 (eps_real - eps_fake) = alpha sigma (fake - real), where variance is preserved."""
    alpha, sigma = hand.vp(seen[1])
    real, fake = (hand.says(denoiser, seen, w) for denoiser in (hand.teacher, hand.critic))
    return pseudo(alpha * sigma * (fake - real))


def vsd_critic(hand: Hand) -> Tensor:
    x0, (x_t, t, cond) = followed(hand)
    assert hand.null is not None
    told = hand.draws.uniform(hand.count) > hand.config.critic_dropout
    some = cond.where(told, hand.null.expand(hand.count))
    x0_hat = hand.says(hand.critic, (x_t, t, some))
    alpha = hand.vp(t)[0].flatten()
    return (alpha**2 * hand.own_error(x0_hat, x0, (x_t, t, cond))).mean()


def sid(hand: Hand) -> Tensor:
    config, (x0, seen) = hand.config, shared(hand)
    networks = (hand.teacher, hand.critic)
    both = (hand.says(network, seen, config.guidance_scale) for network in networks)
    return identity(x0, *both, config.alpha)


def sid_critic(hand: Hand, cond: Conditioning | None = None) -> Tensor:
    x0 = hand.student(cond)
    t = hand.times(matching=False)
    seen = (hand.noised(x0, t), t, hand.cond if cond is None else cond)
    x0_hat = hand.says(hand.critic, seen, hand.config.guidance_scale)
    return hand.own_error(x0_hat, x0, seen).mean()


def sfd(hand: Hand) -> Tensor:
    config, w = hand.config, hand.config.guidance_scale
    x0, (x_t, t, cond) = shared(hand)
    hand.draws.uniform(hand.count)  # which override, of one
    real = hand.says(hand.teacher, (x_t, t, _overridden(hand)), w)
    fake = hand.says(hand.critic, (x_t, t, cond), w)
    retained = identity(x0, real, fake, config.alpha)
    c_f, c_o = _forgotten(hand)
    x0 = hand.student(c_f)
    t = hand.times(matching=True)
    x_t = hand.noised(x0, t)
    real, fake = hand.says(hand.teacher, (x_t, t, c_o), w), hand.says(hand.critic, (x_t, t, c_f), w)
    return retained + config.forget_weight * identity(x0, real, fake, config.alpha)


def sfd_critic(hand: Hand) -> Tensor:
    retained = sid_critic(hand)
    return retained + hand.config.forget_weight * sid_critic(hand, _forgotten(hand)[0])


def _forgotten(hand: Hand) -> tuple[Conditioning, Conditioning]:
    hand.draws.uniform(hand.count)  # which of what is forgotten, of one
    both = hand.method.forget, hand.method.override
    c_f, c_o = (hand.cond.replace(one.expand(hand.count)) for one in both)
    return c_f, c_o


def _overridden(hand: Hand) -> Conditioning:
    """c_o for each sample that is told c_f."""
    rows = []
    for i in range(hand.count):
        own = hand.cond.select(slice(i, i + 1))
        is_forgotten = all(torch.equal(own[k], hand.method.forget[k]) for k in own)
        rows.append(own.replace(hand.method.override) if is_forgotten else own)
    return Conditioning.cat(rows)


def ladd(hand: Hand) -> Tensor:
    x0 = hand.student()
    t = hand.drawn(hand.config.log_normal, (0.0, 1.0))
    return F.softplus(-hand.logit(hand.method.trunk, (hand.noised(x0, t), t, hand.cond))).mean()


def ladd_critic(hand: Hand) -> Tensor:
    x0 = hand.student()
    t = hand.drawn(hand.config.log_normal, (0.0, 1.0))
    assert hand.x0 is not None
    fake, real = hand.noised(x0, t), hand.noised(hand.x0, t)
    by_fake, by_real = (hand.logit(hand.method.trunk, (x, t, hand.cond)) for x in (fake, real))
    return (F.softplus(by_fake) + F.softplus(-by_real)).mean()


# (method, purpose) -> its value
FORMULAS: dict[tuple[str, str], Callable[[Hand], Tensor]] = {
    ("dmd2", "generator"): dmd2,
    ("dmd2", "critic"): dmd2_critic,
    ("fdiv", "generator"): fdiv,
    ("fdiv", "critic"): fdiv_critic,
    ("dmd", "generator"): dmd,
    ("dmd", "critic"): denoising,
    ("vsd", "generator"): vsd,
    ("vsd", "critic"): vsd_critic,
    ("snoopi", "generator"): snoopi,
    ("snoopi", "critic"): vsd_critic,
    ("sid", "generator"): sid,
    ("sid", "critic"): sid_critic,
    ("sfd", "generator"): sfd,
    ("sfd", "critic"): sfd_critic,
    ("ladd", "generator"): ladd,
    ("ladd", "critic"): ladd_critic,
}
