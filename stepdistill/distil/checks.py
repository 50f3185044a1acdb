"""What is refused before any long work."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from ..data import Data, TensorData
from ..data.loading import ToldData
from ..data.sharded_data import ShardedData
from ..errors import UserError
from ..fit_config import FitConfig
from ..methods import METHODS
from ..methods.base import Method
from ..roles import LoRAOptions
from ..sharing import check_name
from ..teachers import Teacher
from ..watching import check_metrics, check_watched, chosen
from .options import DistilOptions, EvalOptions


def check_possible(name: str, method: Method, data: Data, teacher: Teacher) -> None:
    """UserError before any long work: data the method lacks, a plan the pipeline cannot follow."""
    if any(need.startswith("pairs") for need in METHODS[name].card.needs):
        if not (isinstance(data, ShardedData) and "z" in data.names):
            raise UserError(
                f"{name} learns from pairs of noise and sample: make some with stepdistill "
                "precompute --pairs, and give their folder as --data"
            )
    elif method.needs_data and isinstance(data, ShardedData) and "x0" not in data.names:
        raise UserError(
            f"{name} needs real samples, and {data.folder} holds conditionings alone: precompute "
            "images with --data"
        )
    elif method.needs_data and isinstance(data, TensorData) and data.x0 is None:
        needs = next(need for need in METHODS[name].card.needs if need.startswith("data"))
        raise UserError(f"{name} needs {needs}, and {teacher.name} brings none: give --data")
    if getattr(method, "needs_texts", False):
        check_told(data, teacher)
    teacher.check_plan(method.plan)


def check_told(data: Data, teacher: Teacher) -> None:
    """UserError for data whose samples have no prompts that are known."""
    compared = "method.align_weight compares images with their prompts, and"
    if not teacher.is_told_by_text:
        raise UserError(f"{compared} {teacher.name} is not told by text: set it to 0")
    if len(data) and not (isinstance(data, ToldData) and data.texts([0])):
        raise UserError(
            f"{compared} the data knows none: give --prompts or captioned samples, or set it to 0"
        )


def check_validation(options: DistilOptions, teacher: Teacher) -> None:
    """UserError for validation prompts to a teacher that prompts alone do not tell."""
    if not options.validation_prompts:
        return
    if not teacher.is_told_by_text:
        raise UserError(f"{teacher.name} is not told by text: leave --validation_prompts out")
    if teacher.family.card.task.startswith("image"):
        raise UserError(
            f"{teacher.name} goes on from first frames, which --validation_prompts do not bring: "
            "leave them out, and the grids show examples of its family"
        )


def check_evaluation(options: DistilOptions, own: EvalOptions, config: FitConfig) -> None:
    """UserError for what goes by measurements where there are none."""
    check_watched(config, measures=True)
    if config.evaluate_every:
        return
    if options.export_best:
        raise UserError("export_best goes by measurements: give evaluate_every too")
    given = [name for name, value in asdict(own).items() if value not in (None, ())]
    if given:
        raise UserError(f"eval.{given[0]} is of measurements: give evaluate_every too")


def check_deciding(options: DistilOptions, config: FitConfig, names: Collection[str]) -> None:
    """UserError if ``names`` are measured, and none of them can decide what it has to."""
    check_metrics(config, names)
    if options.export_best and chosen(names, config.best_metric) is None:
        listed = ", ".join(names)
        raise UserError(f"export_best needs a metric to go by: set best_metric, to one of {listed}")


def warn_of_path(options: DistilOptions, teacher: Teacher) -> None:
    """Say, while there is nothing to push yet, that a LoRA's card will show where a teacher lies:
    the code on it loads the teacher too.
    """
    pushed = options.push_to_hub and options.export in ("lora", "both")
    if pushed and Path(teacher.source).exists():
        print(
            f"the card of the LoRA will show {teacher.source}, which nobody else can load: give "
            "the teacher's hub id as --teacher, or change README.md on the hub",
            file=sys.stderr,
        )


def check_export(options: DistilOptions, lora: LoRAOptions, teacher: Teacher) -> None:
    """UserError for a LoRA that there will not be, or that the stock pipeline cannot load."""
    if options.push_to_hub:
        check_name(options.push_to_hub)
    if options.export == "folder":
        return
    if lora.rank == 0:
        raise UserError(f"export={options.export} needs LoRA roles: give --lora.rank")
    if not hasattr(teacher.pipeline, "save_lora_weights"):
        raise UserError(
            f"{teacher.family.card.pipeline} cannot load LoRA weights: use --export folder, which "
            "has them merged"
        )
