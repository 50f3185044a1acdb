"""For the digits' teacher: minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plans import StepPlan
from ..schedules import EDMSchedule


def times(steps: int) -> list[float]:
    """EDM's spacing from a noise level of 10: 10 for one step, 10, 2.8, 0.57, 0.064 for four.

    Above 10 nothing is left of a digit of size 0.5: a first call at 80 has the same to do, on
    inputs that the teacher has hardly seen.
    """
    return list(StepPlan.karras(steps, EDMSchedule(), rho=6.0, sigma_max=10.0).times)


def loop() -> dict[str, Any]:
    """What all methods with a critic share of the loop's settings."""
    return {
        "max_steps": 900,
        "batch_size": 128,
        "betas": (0.0, 0.999),
        "weight_decay": 0.0,
        "lr_warmup": 20,
        "lr_decay": 450,
        "lr_end": 0.1,
        "ema_half_life": 1e6,
        "ema_rampup": 0.17,
        "sample_every": 300,
        "evaluate_every": 300,
        "save_every": 300,
    }


def matching(steps: int) -> dict[str, Any]:
    """Any distribution matching. Several steps are trained through all of them: one critic for the
    samples of every step lets the last one drift while their mixture is matched.
    """
    return {
        **loop(),
        "times": times(steps),
        "method.through_all_steps": steps > 1,
        "method.generator_lr": 5e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 3,
        "method.matching_log_normal": (-0.4, 1.2),
        "method.critic_log_normal": (-0.8, 1.2),
    }


def dmd2(steps: int) -> dict[str, Any]:
    """With the GAN at the matching noise."""
    return {**matching(steps), "method.gan_weight": 0.1, "method.gan_own_noise": False}


def disback(steps: int) -> dict[str, Any]:
    """DMD2 along a short path: the untrained student's samples are soon learned."""
    path = {"iterations": 100, "every": 20, "interval": 40, "lr": 5e-4}
    return {**dmd2(steps), **{f"path.{name}": value for name, value in path.items()}}


def fdiv(steps: int) -> dict[str, Any]:
    """As DMD2; of a small batch, few samples lie in a bin."""
    return {**dmd2(steps), "method.ramp": 100, "method.bin_decay": 0.9}


def dmd(steps: int) -> dict[str, Any]:
    """Pairs, and no GAN."""
    return {**matching(steps), "method.regression_weight": 0.25}


def vsd(steps: int) -> dict[str, Any]:
    """All weights of the critic, and no guidance, which costs distance here."""
    return {
        **matching(steps),
        "method.critic_rank": 0,
        "method.guidance_scale": 1.0,
        "method.critic_dropout": 0.0,
    }


def snoopi(steps: int) -> dict[str, Any]:
    """Scales around 1, as more guidance costs distance here."""
    return {**matching(steps), "method.critic_rank": 0, "method.guidance_range": (0.8, 1.2)}


def sid(steps: int) -> dict[str, Any]:
    """At the noise of the other methods."""
    return {**matching(steps), "method.alpha": 1.0}


def sfd(steps: int) -> dict[str, Any]:
    """As SiD."""
    return {**sid(steps), "method.forget_weight": 1.0}


def ladd(steps: int) -> dict[str, Any]:
    """Half the batch, and heads that learn three times for an update of the generator: many small
    updates get nearer than few. R1, and less noise than the paper's latents.
    """
    return {
        **loop(),
        "batch_size": 64,
        "times": times(steps),
        "method.through_all_steps": steps > 1,
        "method.generator_lr": 2e-4,
        "method.head_lr": 1e-3,
        "method.critic_steps": 3,
        "method.log_normal": (-1.2, 1.0),
        "method.r1_weight": 1.0,
    }


def regression(steps: int) -> dict[str, Any]:
    """One step, on noise-image pairs."""
    return {
        "times": times(steps),
        "max_steps": 3_000,
        "batch_size": 128,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "lr_warmup": 20,
        "lr_decay": 1_500,
        "ema_half_life": 60_000,
        "sample_every": 500,
        "evaluate_every": 500,
        "save_every": 500,
        "method.lr": 5e-4,
    }


def ect(steps: int) -> dict[str, Any]:
    """Consistency tuning."""
    return {
        "times": times(steps),
        "max_steps": 3_000,
        "batch_size": 128,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "lr_decay": 1_500,
        "grad_clip": 1e9,
        "ema_half_life": 60_000,
        "sample_every": 500,
        "evaluate_every": 500,
        "save_every": 500,
        "method.lr": 5e-4,
        "method.double_every": 400,
        "method.noise_mean": -0.8,
        "method.noise_std": 1.6,
    }


def long() -> dict[str, Any]:
    """One step, for ``quickstart --long``: what it changes of DMD2's."""
    return {"max_steps": 2_200, "lr_decay": 1_100}


def long_four_steps() -> dict[str, Any]:
    """Four steps, for ``quickstart --long``."""
    return {"max_steps": 1_600, "lr_decay": 800}


PRESETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "dmd2": dmd2,
    "disback": disback,
    "fdiv": fdiv,
    "dmd": dmd,
    "vsd": vsd,
    "snoopi": snoopi,
    "sid": sid,
    "sfd": sfd,
    "ladd": ladd,
    "ect": ect,
    "regression": regression,
}
