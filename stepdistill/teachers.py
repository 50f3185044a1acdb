"""``load_teacher``: a built-in name, a diffusers folder or a hub id -> a frozen Teacher."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
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


def load_teacher(source: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Load a teacher by built-in name, folder or hub id, onto ``device``.

    Raises UserError if it is missing, damaged, not in diffusers format, or of an unknown family.
    """
    folder = _folder(str(source))
    index = read_model_index(folder)
    pipeline = index.get("_class_name")
    if pipeline not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{source} is a {pipeline}, which no adapter covers. Known: {known}")
    adapter = importlib.import_module(f"{__package__}.backbones.{FAMILIES[pipeline]}")
    try:
        teacher: Teacher = adapter.load(folder, read_card(folder))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{source} could not be loaded, its files look damaged: {error}") from error
    teacher.denoiser.to(device)
    return teacher


def read_model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder; UserError if there is none."""
    path = folder / "model_index.json"
    if not path.exists():
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json")
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    return index


def read_card(folder: Path) -> dict[str, Any]:
    """What stepdistill wrote beside the weights; {} if the folder is not ours."""
    path = folder / CARD
    card: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return card


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
            f"{source} is neither a folder nor a model the hub could give: {error}"
        ) from error
