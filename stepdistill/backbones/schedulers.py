"""Between diffusers' schedulers and ours: what a teacher's scheduler says, and a student's.

``read`` gives the Schedule and the Parametrization that a scheduler's config states. ``few_step``
gives the scheduler whose default call walks a StepPlan, of diffusers where one can:

| schedule | scheduler                       | plans it can follow                              |
|----------|---------------------------------|--------------------------------------------------|
| VP       | LCMScheduler                    | evenly spaced training steps from any first one  |
| flow     | FlowMatchEulerDiscreteScheduler | evenly spaced times from pure noise, any shift   |
| flow     | FewStepFlowScheduler (ours)     | any other; its file travels with the student     |
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import (
    Denoiser,
    Denoises,
    Parametrization,
    PredictsEps,
    PredictsFlow,
    PredictsV,
    PredictsX0,
)
from ..errors import UserError
from ..plans import StepPlan, renoise_move
from ..schedules import FlowSchedule, Schedule, VPSchedule, expand_like
from ..shipped import FLOW_SCHEDULER
from .flow_grids import flow_match

PREDICTIONS: dict[str, type[Parametrization]] = {
    "epsilon": PredictsEps,
    "v_prediction": PredictsV,
    "sample": PredictsX0,
}
TABLE_TOLERANCE = 5e-6  # relative, of alphas_cumprod that schedulers multiply up in float32


def read(scheduler: Any, mu: float | None = None) -> tuple[Schedule, Parametrization]:
    """The schedule and prediction type of a diffusers scheduler.

    ``mu`` is the log shift where the config leaves it to the resolution (Flux). UserError for a
    schedule we cannot represent, or eps predicted at zero signal, where x0 is undefined.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if name == FLOW_SCHEDULER[1]:
        return FlowSchedule(config.shift, config.num_train_timesteps), PredictsFlow()
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if config.get("use_karras_sigmas") or config.get("invert_sigmas"):
            raise UserError(f"{name} with Karras or inverted sigmas is not a schedule we know")
        dynamic = config.use_dynamic_shifting and mu is not None
        return FlowSchedule(math.exp(mu or 0) if dynamic else config.shift), PredictsFlow()
    if config.get("use_flow_sigmas"):
        return FlowSchedule(config.get("flow_shift") or 1.0), PredictsFlow()
    if "sigma_data" in config and "sigma_min" in config:
        raise UserError(
            f"the teacher's scheduler {name} states EDM's noise levels, on which pixel networks "
            "alone are distilled: save it as a ConsistencyModelPipeline with "
            "CMStochasticIterativeScheduler, if its network was trained to be fed 250 ln(sigma)"
        )
    prediction = config.get("prediction_type")
    if not hasattr(scheduler, "alphas_cumprod") or prediction not in PREDICTIONS:
        raise UserError(
            f"the teacher's scheduler {name} (prediction_type {prediction}) states no schedule we "
            "know: replace it by the one the model was trained with, for example DDIMScheduler or "
            "FlowMatchEulerDiscreteScheduler"
        )
    schedule = VPSchedule(scheduler.alphas_cumprod)
    zero_snr = config.get("rescale_betas_zero_snr") or schedule.knots[-1] == 0
    if prediction == "epsilon" and zero_snr:  # Euler's table then ends at 6e-8, where x0 is noise
        raise UserError(
            f"{name}: eps cannot be predicted at zero terminal SNR, x0 is undefined. Set "
            "prediction_type to what the model was trained on, or rescale_betas_zero_snr to false"
        )
    return schedule, PREDICTIONS[prediction]()


@torch.no_grad()
def walk(
    denoiser: Denoises,
    teacher: Denoiser,
    scheduler: Any,
    z: Tensor,
    cond: Conditioning,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """x0 from unit noise ``z`` by the steps of any diffusers scheduler whose timesteps are set.

    ``denoiser`` is ``teacher`` or the teacher under guidance: its x0_hat is handed to the scheduler
    as the prediction that ``teacher`` makes.
    """
    schedule, parametrization = teacher.schedule, teacher.parametrization
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    drawn = {"generator": generator} if takes_generator else {}
    x = z * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        x_t = x
        if hasattr(scheduler, "scale_model_input"):
            x_t = scheduler.scale_model_input(x, timestep)
        t = schedule.time_of_timestep(timestep.expand(len(z)))
        alpha, sigma = (expand_like(a, x_t) for a in schedule(t))
        x0_hat = denoiser(x_t, t, cond).x0_hat
        output = parametrization.output(x_t, x0_hat, alpha, sigma)
        x = scheduler.step(output, timestep, x, return_dict=False, **drawn)[0]
    return x


def few_step(
    schedule: Schedule, parametrization: Parametrization, plan: StepPlan, gives_sigmas: bool = False
) -> Any:
    """The scheduler that follows ``plan``; ``gives_sigmas``: the pipeline passes its own sigmas.

    UserError for a plan of a VP schedule that none follows.
    """
    if isinstance(schedule, VPSchedule):
        return _lcm(schedule, parametrization, plan)
    assert isinstance(schedule, FlowSchedule)
    return flow_match(schedule, plan, gives_sigmas)


def _lcm(schedule: VPSchedule, parametrization: Parametrization, plan: StepPlan) -> LCMScheduler:
    """LCMScheduler on the training steps up to the plan's first: its grid is then the plan's.

    Its table ends at that step, since a default call starts from the table's end. It never reads
    its ``steps_offset``, but Stable Diffusion's pipelines call a config outdated where that is not
    1, and print the whole of it.
    """
    if plan.move is not renoise_move:
        raise UserError("the stock few-step scheduler of this family re-noises: not an ODE plan")
    steps = schedule.timestep(torch.tensor(plan.times, dtype=torch.float64)).tolist()
    length, count = round(steps[0]) + 1, plan.steps
    if length % count or steps != [length * (count - j) // count - 1 for j in range(count)]:
        near = length // count * count
        even = torch.tensor([near * (count - j) // count - 1 for j in range(count)])
        times = ",".join(f"{t:.7g}" for t in schedule.time_of_timestep(even).tolist())
        raise UserError(
            f"no stock scheduler follows the timesteps {[round(s, 1) for s in steps]}: they must "
            f"be whole and evenly spaced, as with --times [{times}]"
        )
    names = {kind: name for name, kind in PREDICTIONS.items()}
    return LCMScheduler(
        num_train_timesteps=length,
        **_betas(schedule, length),
        prediction_type=names[type(parametrization)],
        original_inference_steps=count,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def _betas(schedule: VPSchedule, length: int) -> dict[str, Any]:
    """The first ``length`` betas as LCMScheduler's arguments, by name if a named form has them.

    Linear and scaled-linear tables that are cut short stay of their kind. The ends of a form are
    fitted to all betas, each of which has the rounding of its two alphas_cumprod, and the form is
    taken where its own alphas_cumprod are the table's. Other tables (zero terminal SNR) are written
    out.
    """
    table = schedule.knots[1 : length + 1]
    betas = 1 - table / schedule.knots[:length]
    rise = torch.linspace(0, 1, length, dtype=torch.float64)
    mix = torch.stack([1 - rise, rise], dim=1)
    for name, power in (("scaled_linear", 2), ("linear", 1)):
        ends = torch.linalg.lstsq(mix, betas[:, None] ** (1 / power)).solution
        found = torch.cumprod(1 - (mix @ ends)[:, 0] ** power, dim=0)
        if torch.allclose(found, table, rtol=TABLE_TOLERANCE, atol=0):
            first, last = (ends[:, 0] ** power).tolist()
            return {"beta_start": first, "beta_end": last, "beta_schedule": name}
    return {"trained_betas": betas.tolist()}
