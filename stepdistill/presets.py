"""Settings that work for the built-in worlds: named functions, found by measurement.

A preset replaces the defaults of ``train METHOD --teacher NAME``; options given still win, and the
resolved settings are written to the run's config.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .plans import StepPlan
from .schedules import EDMSchedule

Preset = Callable[[], dict[str, Any]]


def digits_dmd2() -> dict[str, Any]:
    """DMD2 on the digits, one step, minutes on two cores."""
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
        "method.generator_lr": 5e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 3,
        "method.gan_weight": 0.1,
        "method.gan_own_noise": False,
        "method.matching_log_normal": (-0.4, 1.2),
        "method.critic_log_normal": (-0.8, 1.2),
    }


def digits_ect() -> dict[str, Any]:
    """ECT on the digits."""
    return {
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


def digits_quickstart() -> dict[str, Any]:
    """What ``quickstart`` trains: :func:`digits_dmd2` as it is."""
    return {}


def digits_long() -> dict[str, Any]:
    """One step, for ``quickstart --long``: what it changes of :func:`digits_dmd2`."""
    return {"max_steps": 2_200, "lr_decay": 1_100}


def digits_long_four_steps() -> dict[str, Any]:
    """Four steps, for ``quickstart --long``: noise levels 10, 4.5, 1.5 and 0.25.

    From 10, as above that a digit of size 0.5 leaves the steps nothing to do; and trained through
    all of them, since one critic for the samples of every step lets the last one drift while their
    mixture is matched.
    """
    plan = StepPlan.karras(4, EDMSchedule(), rho=3.0, sigma_max=10.0)
    return {
        "max_steps": 2_800,
        "lr_decay": 1_400,
        "times": list(plan.times),
        "method.through_all_steps": True,
    }


_PRESETS: dict[tuple[str, str], Preset] = {
    ("digits", "dmd2"): digits_dmd2,
    ("digits", "ect"): digits_ect,
}


def of(teacher: str, method: str) -> dict[str, Any]:
    """The preset for a built-in teacher and a method; {} if there is none."""
    preset = _PRESETS.get((teacher, method))
    return preset() if preset is not None else {}


def described(method: str) -> str:
    """For --help: what the presets of ``method`` set, world by world."""
    found = [(world, preset()) for (world, own), preset in _PRESETS.items() if own == method]
    said = [
        f"With --teacher {world} the defaults are: "
        + ", ".join(f"{key} {value}" for key, value in values.items())
        for world, values in found
    ]
    return " ".join(f"{sentence}." for sentence in said)
