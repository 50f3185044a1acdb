"""From options to a teacher and a method over it."""

from __future__ import annotations

import torch

from ..compiling import compile_repeated
from ..config import Settings
from ..errors import UserError
from ..fit import FitConfig
from ..methods import METHODS
from ..methods.base import Method
from ..methods.matching import Matching
from ..plans import StepPlan
from ..precomputed import find_precomputed, stored
from ..rehearsal import without_data
from ..roles import LoRAOptions
from ..savings import MemoryOptions, save_memory
from ..teachers import LoadOptions, Teacher, load_teacher
from .degradation import with_path
from .options import DistilOptions


def read_teacher(settings: Settings, device: torch.device | str = "cpu") -> Teacher:
    """The teacher; on precomputed samples without what they stand in for, as far as grids,
    measurements and the method's losses allow."""
    options = settings.get(DistilOptions)
    found = find_precomputed(options.data)
    held = None
    if found is not None:
        config = settings.get(FitConfig)
        losses = any(getattr(part, "decodes", False) for part in settings.parts.values())
        held = stored(found, losses or config.sample_every > 0 or config.evaluate_every > 0)
    return load_teacher(options.teacher, device, settings.get(LoadOptions), held)


def build_without_data(
    name: str, settings: Settings, device: str = "cpu"
) -> tuple[Teacher, Method]:
    """Both on the meta device, as they would behave on ``device``: no weights are read."""
    with without_data(device):
        options = settings.get(LoadOptions)
        teacher = load_teacher(settings.get(DistilOptions).teacher, "meta", options)
        with torch.device("meta"):
            return teacher, build_method(name, settings, teacher)


def build_method(name: str, settings: Settings, teacher: Teacher) -> Method:
    """The method on this teacher; the same new weights (a GAN head's) on all ranks."""
    torch.manual_seed(settings.get(FitConfig).seed)
    options = settings.get(DistilOptions)
    if options.times and options.steps not in (1, len(options.times)):
        raise UserError(
            f"steps={options.steps}, but times has {len(options.times)}: leave steps out"
        )
    plan = StepPlan(options.times) if options.times else StepPlan.uniform(options.steps)
    kind = METHODS[name]
    method: Method = kind.from_teacher(
        teacher, plan, settings.get(kind.Config), settings.get(LoRAOptions)
    )
    if isinstance(method, Matching):
        with_path(method, settings, teacher)
    memory = settings.get(MemoryOptions)
    if options.compile_blocks and (memory.teacher_fp8 or memory.teacher_int8):
        raise UserError("compile_blocks does not go with a teacher in 8 bits: drop one of them")
    save_memory(memory, method, teacher.denoiser)
    if options.compile_blocks:
        compile_repeated(method, teacher.denoiser)
    return method
