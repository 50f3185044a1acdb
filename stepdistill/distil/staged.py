"""One stage of a list: where it starts, and what is known to be wrong before any stage begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Settings
from ..errors import UserError
from ..fit import FitConfig
from ..methods import LADD, METHODS
from ..methods.matching import Matching
from ..precomputed import find_precomputed
from ..roles import LoRAOptions
from .build import build_without_data
from .checks import check_evaluation, check_export, check_possible
from .degradation import path_options
from .options import DistilOptions, EvalOptions


def continued(
    name: str, settings: Settings, next_name: str, next_settings: Settings, own: Mapping[str, Any]
) -> dict[str, str]:
    """init and init_critic of a stage that follows ``name``; what it gives as its ``own`` stays.

    UserError where it cannot start from that student.
    """
    options = settings.get(DistilOptions)
    origin = f"{options.output}/dry_run" if options.dry_run else options.output
    if "init" not in own:
        _check_student(settings, next_settings)
    critics = _critic(name, settings), _critic(next_name, next_settings)
    same = critics[0] is not None and critics[0] == critics[1]
    start = origin if same and not path_options(next_settings).iterations else ""
    return {
        "init": str(own.get("init") or "") if "init" in own else origin,
        "init_critic": str(own.get("init_critic") or "") if "init_critic" in own else start,
    }


def check_stage(name: str, settings: Settings) -> None:
    """UserError for what can be seen without weights and data: options that do not go together, a
    plan, a method on this teacher, data that are not there."""
    options = settings.get(DistilOptions)
    check_evaluation(options, settings.get(EvalOptions), settings.get(FitConfig))
    teacher, method = build_without_data(name, settings)
    teacher.check_plan(method.plan)
    check_export(options, settings.get(LoRAOptions), teacher)
    found = find_precomputed(options.data)
    if found is not None:
        check_possible(name, method, found, teacher)
    elif options.data not in ("", "digits") and not Path(options.data).exists():
        raise UserError(f"there is no folder {options.data}: give other --data")


def _critic(name: str, settings: Settings) -> tuple[Any, ...] | None:
    """What two critics must share to go on from one another, None without one."""
    kind, lora = METHODS[name], settings.get(LoRAOptions)
    if issubclass(kind, Matching):
        return "critic", *_shape(kind.critic_lora(settings.get(kind.Config), lora))
    return ("head",) if issubclass(kind, LADD) else None


def _check_student(before: Settings, after: Settings) -> None:
    """UserError where the student of one run is no start for the other's."""
    there, here = before.get(LoRAOptions), after.get(LoRAOptions)
    if here.rank and _shape(there) != _shape(here):
        raise UserError(
            "a LoRA starts from a LoRA of the same rank, alpha and targets, and the stage before "
            "has another or none: give lora to all stages, or this one an init of its own"
        )
    if there.rank and not here.rank and before.get(DistilOptions).export == "lora":
        raise UserError(
            "it starts from a whole student, and the stage before exports a LoRA alone: give that "
            "one export=both"
        )


def _shape(lora: LoRAOptions) -> tuple[Any, ...]:
    return (lora.rank, lora.alpha, lora.targets) if lora.rank else (0,)
