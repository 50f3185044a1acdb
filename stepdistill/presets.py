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


def captioned_dmd2() -> dict[str, Any]:
    """DMD2 on the captioned digits: what all its runs share. Each takes 10 to 30 minutes of a core.

    Less guidance lowers the distance, more of it raises the caption accuracy.
    """
    return {
        "batch_size": 32,
        "betas": (0.0, 0.999),
        "weight_decay": 0.0,
        "lr_warmup": 20,
        "lr_end": 0.1,
        "ema_half_life": 4_000,
        "ema_rampup": 0.17,
        "sample_every": 200,
        "evaluate_every": 200,
        "save_every": 200,
        "evaluate_samples": 1_000,
        "method.gan_weight": 0.3,
        "method.gan_critic_weight": 0.3,
        "method.gan_own_noise": False,
    }


def flow_one_step() -> dict[str, Any]:
    """One step of the flow teacher, from pure noise at t = 0.85.

    At t = 1 the teacher's x0_hat is the mean picture of a caption, whatever the noise; a little
    earlier it sees shapes in the noise, and the student starts from those.
    """
    return {
        **captioned_dmd2(),
        "times": [0.85],
        "max_steps": 800,
        "lr_decay": 500,
        "method.generator_lr": 6e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 2.4,
    }


def t2i_one_step() -> dict[str, Any]:
    """One step of the other, from t = 0.8 for the same reason."""
    return {
        **captioned_dmd2(),
        "times": [0.8],
        "max_steps": 3_000,
        "lr_decay": 1_300,
        "method.generator_lr": 6e-4,
        "method.critic_lr": 1.2e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 1.43,
    }


def flow_several_steps() -> dict[str, Any]:
    """Several steps of the flow teacher: as published, one critic for the samples of all."""
    return {
        **captioned_dmd2(),
        "max_steps": 1_000,
        "lr_decay": 650,
        "method.generator_lr": 4e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 2.25,
    }


def t2i_several_steps() -> dict[str, Any]:
    """Several steps of the other: with one critic for the samples of all, the last step drifts.

    What the caption says is decided at middle noise: matched and guided mostly there, the student
    follows it more often at an equal distance.
    """
    return {
        **captioned_dmd2(),
        "max_steps": 1_500,
        "lr_decay": 700,
        "method.through_all_steps": True,
        "method.gan_weight": 0.5,
        "method.gan_own_noise": True,
        "method.gan_t_max": 0.25,
        "method.generator_lr": 3e-4,
        "method.critic_lr": 8e-4,
        "method.critic_steps": 2,
        "method.guidance_scale": 1.53,
        "method.guidance_interval": (0.0, 0.7),
        "method.matching_log_normal": (0.2, 0.8),
    }


def digits_times(steps: int) -> list[float]:
    """EDM's spacing from a noise level of 10: 10 for one step, 10, 2.8, 0.57, 0.064 for four.

    Above 10 nothing is left of a digit of size 0.5: a first call at 80 has the same to do, on
    inputs that the teacher has hardly seen.
    """
    return list(StepPlan.karras(steps, EDMSchedule(), rho=6.0, sigma_max=10.0).times)


def digits_quickstart() -> dict[str, Any]:
    """One step, for ``quickstart``: what it changes of :func:`digits_dmd2`."""
    return {"times": digits_times(1)}


def digits_long() -> dict[str, Any]:
    """One step, for ``quickstart --long``."""
    return {"max_steps": 2_200, "lr_decay": 1_100, "times": digits_times(1)}


def digits_long_four_steps() -> dict[str, Any]:
    """Four steps, for ``quickstart --long``, trained through all of them.

    One critic for the samples of every step lets the last one drift while their mixture is matched.
    """
    return {
        "max_steps": 1_600,
        "lr_decay": 800,
        "times": digits_times(4),
        "method.through_all_steps": True,
    }


_ONE_STEP: dict[tuple[str, str], Preset] = {
    ("digits", "dmd2"): digits_dmd2,
    ("digits", "ect"): digits_ect,
    ("digits-flow", "dmd2"): flow_one_step,
    ("digits-t2i", "dmd2"): t2i_one_step,
}
_SEVERAL_STEPS: dict[tuple[str, str], Preset] = {
    **_ONE_STEP,
    ("digits-flow", "dmd2"): flow_several_steps,
    ("digits-t2i", "dmd2"): t2i_several_steps,
}


def of(teacher: str, method: str, steps: int) -> dict[str, Any]:
    """The preset for a built-in teacher, a method and a number of steps; {} if there is none."""
    preset = (_ONE_STEP if steps == 1 else _SEVERAL_STEPS).get((teacher, method))
    return preset() if preset is not None else {}


def described(method: str) -> str:
    """For --help: what the presets of ``method`` set, world by world."""
    said = []
    for (world, own), preset in _ONE_STEP.items():
        if own == method:
            said.append(_sentence(f"With --teacher {world}", preset))
            several = _SEVERAL_STEPS[world, own]
            if several is not preset:
                said.append(_sentence("In several steps", several))
    return " ".join(said)


def _sentence(where: str, preset: Preset) -> str:
    values = ", ".join(f"{key} {value}" for key, value in preset().items())
    return f"{where} the defaults are: {values}."
