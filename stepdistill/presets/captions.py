"""For the two text-to-image worlds, on captioned digits: 10 to 30 minutes of a core each.

DMD2's were searched for, in one step and in four. Those of other methods are changes to them, and
searched for only where they ended at more than twice the best distance: SiD and LADD in one step,
at DMD2's rates or with one update to one, SiD and SNOOPI in several of the flow teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]
Preset = Callable[[int], Settings]


def dmd2() -> Settings:
    """What all runs of DMD2 share.

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


def flow_one_step() -> Settings:
    """One step of the flow teacher, from pure noise at t = 0.85.

    At t = 1 the teacher's x0_hat is the mean picture of a caption, whatever the noise; a little
    earlier it sees shapes in the noise, and the student starts from those.
    """
    return {
        **dmd2(),
        "times": [0.85],
        "max_steps": 800,
        "lr_decay": 500,
        "method.generator_lr": 6e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 2.4,
    }


def t2i_one_step() -> Settings:
    """One step of the other, from t = 0.8 for the same reason."""
    return {
        **dmd2(),
        "times": [0.8],
        "max_steps": 3_000,
        "lr_decay": 1_300,
        "method.generator_lr": 6e-4,
        "method.critic_lr": 1.2e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 1.43,
    }


def flow_several_steps() -> Settings:
    """Several steps of the flow teacher: as published, one critic for the samples of all."""
    return {
        **dmd2(),
        "max_steps": 1_000,
        "lr_decay": 650,
        "method.generator_lr": 4e-4,
        "method.critic_lr": 1e-3,
        "method.critic_steps": 1,
        "method.guidance_scale": 2.25,
    }


def t2i_several_steps() -> Settings:
    """Several steps of the other: with one critic for the samples of all, the last step drifts.

    What the caption says is decided at middle noise: matched and guided mostly there, the student
    follows it more often at an equal distance.
    """
    return {
        **dmd2(),
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


def flow_dmd2(steps: int) -> Settings:
    """DMD2 of the flow teacher."""
    return flow_one_step() if steps == 1 else flow_several_steps()


def t2i_dmd2(steps: int) -> Settings:
    """DMD2 of the other."""
    return t2i_one_step() if steps == 1 else t2i_several_steps()


def image_free(dmd2: Settings) -> Settings:
    """DMD2's without the GAN: for what learns from the teacher alone.

    Several steps are trained through all of them: nothing else holds the last one to the data while
    one critic follows the samples of all.
    """
    own = {key: value for key, value in dmd2.items() if not key.startswith("method.gan_")}
    return own if "times" in own else {**own, "method.through_all_steps": True}


def disback(dmd2: Settings) -> Settings:
    """Along a short path."""
    path = {"iterations": 60, "every": 20, "interval": 20, "lr": 5e-4}
    return {**dmd2, **{f"path.{name}": value for name, value in path.items()}}


def fdiv(dmd2: Settings) -> Settings:
    """As DMD2; of a small batch, few samples lie in a bin."""
    own = {key: value for key, value in dmd2.items() if key != "method.gan_t_max"}
    changes = {"gan_own_noise": False, "ramp": 100, "bin_decay": 0.95}
    return {**own, **{f"method.{name}": value for name, value in changes.items()}}


def dmd(dmd2: Settings) -> Settings:
    """Pairs in place of the GAN."""
    return {**image_free(dmd2), "method.regression_weight": 0.25}


def vsd(dmd2: Settings) -> Settings:
    """All weights of the critic; it is guided too, and so has to learn the null conditioning."""
    return {**image_free(dmd2), "method.critic_rank": 0, "method.critic_dropout": 0.1}


def snoopi(dmd2: Settings) -> Settings:
    """Scales around the one of the others."""
    own = vsd(dmd2)
    most = 2 * own.pop("method.guidance_scale") - 1
    return {**own, "method.guidance_range": (1.0, most)}


def sid(dmd2: Settings) -> Settings:
    """Half the rate of the generator and three updates of the critic to one: what it learns of the
    critic's gradient is worth something only where the critic is near its optimum. The root of the
    others' scale: both scores are guided, and the critic in its loss.
    """
    own = image_free(dmd2)
    changes = {
        "alpha": 1.0,
        "generator_lr": own["method.generator_lr"] / 2,
        "critic_steps": 3,
        "guidance_scale": own["method.guidance_scale"] ** 0.5,
    }
    return {**own, **{f"method.{name}": value for name, value in changes.items()}}


def ladd(dmd2: Settings) -> Settings:
    """Three updates of the heads to one, at the noise where it is decided what the caption says: at
    less noise it is not followed."""
    own = {key: value for key, value in dmd2.items() if not key.startswith("method.")}
    changes = {
        "generator_lr": 3e-4,
        "head_lr": 1e-3,
        "critic_steps": 3,
        "log_normal": (0.4, 1.2),
        "r1_weight": 1.0,
        "through_all_steps": True,
    }
    return {**own, **{f"method.{name}": value for name, value in changes.items()}}


def same(dmd2: Settings) -> Settings:
    """DMD2 itself."""
    return dmd2


CHANGES: dict[str, Callable[[Settings], Settings]] = {
    "dmd2": same,
    "disback": disback,
    "fdiv": fdiv,
    "dmd": dmd,
    "vsd": vsd,
    "snoopi": snoopi,
    "sid": sid,
    "ladd": ladd,
}


def changed(dmd2: Preset, change: Callable[[Settings], Settings]) -> Preset:
    """The preset of another method, in as many steps."""
    return lambda steps: change(dmd2(steps))


def flow_sid(steps: int) -> Settings:
    """Several steps of the flow teacher at a quarter of that rate: at twice it, and at four times,
    the distance is about two and three times as large."""
    own = sid(flow_dmd2(steps))
    return own if steps == 1 else {**own, "method.generator_lr": own["method.generator_lr"] / 4}


def flow_snoopi(steps: int) -> Settings:
    """Several steps of the flow teacher at lower scales: up to 2.5, not 3.5 or 5."""
    own = snoopi(flow_dmd2(steps))
    return own if steps == 1 else {**own, "method.guidance_range": (1.0, 2.5)}


FLOW = {method: changed(flow_dmd2, change) for method, change in CHANGES.items()}
FLOW |= {"sid": flow_sid, "snoopi": flow_snoopi}
T2I = {method: changed(t2i_dmd2, change) for method, change in CHANGES.items()}
