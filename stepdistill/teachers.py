"""``load_teacher``: a built-in name, a diffusers folder or a hub id -> a frozen Teacher."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .conditioning import Conditioning
from .denoisers import Denoiser
from .errors import UserError
from .plans import StepPlan

WORLDS = Path(__file__).parent / "worlds"
CARD = "stepdistill.json"  # what stepdistill adds beside a folder's model_index.json

# pipeline class in model_index.json -> the adapter's module in backbones/
FAMILIES = {"ConsistencyModelPipeline": "pixel"}


@dataclass(frozen=True)
class Teacher:
    """A frozen model and what its family knows: how to condition it, and how to export a student.

    ``denoiser`` is in eval mode with no trainable weight; it is never prepared or wrapped.
    ``null_cond`` is the conditioning of one unconditional sample, None if the model has none.
    """

    name: str
    family: str
    denoiser: Denoiser
    sample_shape: tuple[int, ...]
    null_cond: Conditioning | None
    num_classes: int | None

    def encode(self, prompts: Sequence[Any]) -> Conditioning:
        """Class numbers (or prompts) -> Conditioning."""
        cond: Conditioning = self._adapter.encode(self, prompts)
        return cond

    def probe(self) -> Conditioning:
        """The conditioning of one sample, to find shapes with."""
        return self.null_cond if self.null_cond is not None else self.encode([0])

    def student(self) -> Denoiser:
        """The same network (not a copy) in the form that this family's pipeline samples."""
        denoiser: Denoiser = self._adapter.student(self)
        return denoiser

    def check_plan(self, plan: StepPlan) -> None:
        """UserError, before any training, for a plan that ``save_student`` cannot export."""
        self._adapter.check_plan(self, plan)

    def save_student(self, generator: nn.Module, plan: StepPlan, folder: Path) -> None:
        """Write ``generator`` as a stock diffusers folder that follows ``plan``."""
        self._adapter.save(generator, self, plan, folder)

    @property
    def lora_targets(self) -> list[str]:
        """The layers a LoRA role adapts unless told otherwise."""
        return list(self._adapter.LORA_TARGETS)

    @property
    def _adapter(self) -> ModuleType:
        return importlib.import_module(f"{__package__}.backbones.{self.family}")


def built_in_worlds() -> list[str]:
    """The names of the bundled teachers."""
    return sorted(p.parent.name for p in WORLDS.glob("*/teacher"))


def supported() -> str:
    """The pipelines that have an adapter, in a sentence."""
    return f"Supported pipelines: {', '.join(sorted(FAMILIES))}"


def load_teacher(source: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Load a teacher by built-in name, folder or hub id, onto ``device``.

    Raises UserError if it is missing, damaged, not in diffusers format, or of an unknown family.
    """
    folder = _folder(str(source))
    index = read_model_index(folder)
    pipeline = index.get("_class_name")
    if pipeline not in FAMILIES:
        raise UserError(f"{source} is a {pipeline}, which is not supported. {supported()}")
    adapter = importlib.import_module(f"{__package__}.backbones.{FAMILIES[pipeline]}")
    try:
        teacher: Teacher = adapter.load(folder, read_card(folder))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{source} could not be loaded, its files look damaged: {first_line(error)}"
        ) from error
    teacher.denoiser.to(device)
    return replace(teacher, name=str(source))


def read_model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder; UserError if there is none."""
    if not (folder / "model_index.json").exists():
        within = next((p.parent for p in sorted(folder.glob("*/model_index.json"))), None)
        hint = f": did you mean {within}?" if within else ""
        raise UserError(f"{folder} is not a diffusers folder, it has no model_index.json{hint}")
    return _read_object(folder / "model_index.json")


def read_card(folder: Path) -> dict[str, Any]:
    """What stepdistill wrote beside the weights; {} if the folder is not ours."""
    return _read_object(folder / CARD) if (folder / CARD).exists() else {}


def first_line(error: BaseException) -> str:
    """The first line of what a library says went wrong: they go on for long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; UserError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(found).__name__}")
    return found


def _folder(source: str) -> Path:
    """Resolve a built-in name, a folder, or a hub id (downloaded or from the cache)."""
    if source in built_in_worlds():
        return WORLDS / source / "teacher"
    if Path(source).exists():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"there is no folder {source}, and no built-in teacher of that name "
            f"(built in: {', '.join(built_in_worlds())})"
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(source))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise UserError(
            f"{source} is neither a folder nor a model the hub could give: {first_line(error)}"
        ) from error
