"""Export: generator + StepPlan -> a stock diffusers folder, or a LoRA, that checks itself."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from .denoisers import Denoiser
from .errors import StepDistillError, UserError
from .lora_files import WEIGHTS
from .model_cards import loading_code, lora_loading_code, model_card, sampling_call
from .plans import StepPlan
from .selfcheck import check
from .sources import shown_source
from .teachers import CARD, Teacher, read_card

Record = dict[str, Any]


def export(
    generator: nn.Module,
    teacher: Teacher,
    plan: StepPlan,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
) -> float:
    """Write ``folder`` whole or not at all, and check it in a fresh process.

    Returns how much its samples differ from the trainer's own x0 (see ``selfcheck.check``).

    ``card`` is kept beside the weights as ``stepdistill.json`` with the plan. An earlier student
    there is replaced; UserError if something else is, or nothing can be. StepDistillError if they
    differ too much.
    """
    assert isinstance(generator, Denoiser)
    teacher = teacher.whole()
    generator = as_loaded(generator, teacher.denoiser)
    call = teacher.family.call

    def write(place: Path, record: Record) -> float:
        teacher.save_student(generator, plan, place)
        code = loading_code(teacher.options, place)
        shown = sampling_call(call(teacher, teacher.examples(1)), plan)
        (place / "README.md").write_text(model_card(record, teacher, plan, code + shown))
        return check(generator, teacher, plan, place, code, call)

    return _write_whole(Path(folder), _record(teacher, plan, card), write)


def export_lora(
    generator: nn.Module,
    teacher: Teacher,
    plan: StepPlan,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
) -> float:
    """Write the adapters of ``generator`` with the scheduler that its steps need, and check them.

    The folder holds ``pytorch_lora_weights.safetensors`` for diffusers, the same with other
    programs' keys where they have their own, and ``scheduler/``. Errors as of :func:`export`, and
    UserError for a pipeline that cannot load a LoRA.
    """
    assert isinstance(generator, Denoiser)
    teacher = teacher.whole()

    def call(teacher: Teacher, prompts: Any) -> dict[str, Any]:
        unguided = teacher.family.guidance_call(teacher.pipeline, 1.0)
        return {**teacher.family.call(teacher, prompts), **unguided}

    def write(place: Path, record: Record) -> float:
        files = teacher.family.save_lora(generator, teacher, plan, place)
        code = lora_loading_code(teacher, files, place / "scheduler")
        shown = sampling_call(call(teacher, teacher.examples(1)), plan)
        (place / "README.md").write_text(model_card(record, teacher, plan, code + shown, lora=True))
        return check(generator, teacher, plan, place, code, call)

    return _write_whole(Path(folder), {**_record(teacher, plan, card), "lora": WEIGHTS}, write)


def as_loaded(generator: Denoiser, teacher: Denoiser) -> Denoiser:
    """``generator`` with every weight in the dtype that the teacher has it in: what learned in
    float32 is written, and checked, in the dtype that the pipeline is loaded in.
    """
    dtypes = {name: p.dtype for name, p in teacher.named_parameters()}
    if all(p.dtype == dtypes.get(name, p.dtype) for name, p in generator.named_parameters()):
        return generator
    generator = copy.deepcopy(generator)
    for name, parameter in generator.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    return generator


def _record(teacher: Teacher, plan: StepPlan, card: Mapping[str, Any] | None) -> Record:
    """What stepdistill writes beside the weights."""
    tokens = teacher.options.max_tokens
    return {
        "teacher": shown_source(teacher.name),
        **(card or {}),
        "family": teacher.family.card.name,
        "plan": plan.to_dict(),
        "sample_shape": list(teacher.sample_shape),
        "num_classes": teacher.num_classes,
        "counts": teacher.family.counts(teacher, plan),
        "call": teacher.family.settings(teacher),
        **({} if tokens is None else {"max_tokens": tokens}),
    }


def _write_whole(folder: Path, record: Record, write: Callable[[Path, Record], float]) -> float:
    """Let ``write`` fill a folder aside, and rename it to ``folder`` once it is checked."""
    folder = folder.resolve()
    claim(folder)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        (aside / CARD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        difference = write(aside, record)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        return difference
    except (OSError, SafetensorError) as error:
        raise StepDistillError(f"could not write the student to {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # after a failure; renamed after a success


def claim(folder: Path) -> None:
    """UserError if ``folder`` holds something that is no student, or cannot be made."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if taken and "plan" not in read_card(folder):
            raise UserError(f"{folder} holds something that is no student: give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from error
