"""Two students made one: their weights, interpolated (SwiftBrush v2, arXiv:2408.14176).

    theta = (1 - w) theta_A + w theta_B

in float32. Students of one teacher, trained in two ways (all weights with an alignment, and a LoRA
without), lie near enough for that, and the paper's best model is between the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .conditioning import Conditioning
from .errors import UserError
from .export import export
from .files import differences
from .initial import shapes, student_folder
from .plans import StepPlan
from .teachers import LoadOptions, Stored, Teacher, load_teacher, read_card, read_model_index

SCHEDULER = Path("scheduler") / "scheduler_config.json"


@dataclass(frozen=True)
class _Student:
    """The folder of a student, and what its card says."""

    folder: Path
    card: dict[str, Any]
    plan: StepPlan

    @classmethod
    def of(cls, path: Path) -> _Student:
        """UserError for what is no student of ours."""
        if "lora" in (card := read_card(path)):
            read_model_index(path)  # its sentence
        folder = student_folder(path)
        card = read_card(folder)
        if "plan" not in card:
            raise UserError(f"{folder} is no student that stepdistill exported: it names no plan")
        try:
            return cls(folder, card, StepPlan.from_dict(card["plan"]))
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{folder} holds no readable step plan: {error}") from error

    def facts(self) -> dict[str, Any]:
        """What two students that are merged must share."""
        scheduler = self.folder / SCHEDULER
        config = json.loads(scheduler.read_text()) if scheduler.exists() else {}
        return {
            **{key: self.card.get(key) for key in ("family", "sample_shape", "num_classes")},
            "plan": self.plan.to_dict(),
            "scheduler": {k: v for k, v in config.items() if k != "_diffusers_version"},
        }

    def load(self, dtype: str, stored: Stored | None = None) -> Teacher:
        """As a model to export again, of its own size."""
        call = self.card.get("call", {})
        height, width, frames = (call.get(name) for name in ("height", "width", "num_frames"))
        options = LoadOptions(dtype, height, width, frames, self.card.get("max_tokens"))
        found = load_teacher(self.folder, options=options, stored=stored)
        classes, name = self.card.get("num_classes"), self.card.get("teacher", found.name)
        return replace(found, num_classes=classes, name=name)

    def record(self) -> dict[str, Any]:
        """What the card of the merged says of it; of its path the last parts alone."""
        parts = self.folder.resolve().parts[-2:] if self.folder.name == "student" else ()
        told: dict[str, Any] = {k: self.card[k] for k in ("method", "iteration") if k in self.card}
        return {"name": "/".join(parts) or self.folder.name, **told}


@torch.no_grad()
def merge(first: Path, second: Path, weight: float, output: Path, dtype: str = "float32") -> float:
    """Write (1 - weight) ``first`` + weight ``second`` as a diffusers folder, and check it.

    Returns how much its samples differ from the trainer's own, see ``export``. All but the
    network's weights is the first one's. UserError for what is no student, students of different
    families, plans or shapes, and a weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise UserError(f"weight must lie in [0, 1] (0 is the first student), got {weight}")
    one, other = _Student.of(first), _Student.of(second)
    if output.resolve() in (one.folder.resolve(), other.folder.resolve()):
        raise UserError(f"{output} is one of the two students: give another --output")
    if (there := other.facts()) != (here := one.facts()):
        raise UserError(
            f"{other.folder} is another kind of student than {one.folder} "
            f"({differences(there, here)}): give two of one teacher, with the same steps"
        )
    teacher = one.load(dtype)
    without_encoders = Stored(None, Conditioning.empty(1))
    network = other.load(dtype, without_encoders).denoiser.backbone.network
    own, more = teacher.denoiser.backbone.network.state_dict(), network.state_dict()
    if shapes(more) != shapes(own):
        raise UserError(
            f"{other.folder} is of another network than {one.folder} "
            f"({differences(shapes(more), shapes(own))}): give two students of one teacher"
        )
    for name, value in own.items():
        value.copy_(between(value, more[name], weight))
    card = {
        "teacher": teacher.name,
        "method": "merge",
        "merged": [one.record(), other.record()],
        "weight": weight,
    }
    return export(teacher.student(), teacher, one.plan, output, card)


def between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """(1 - weight) a + weight b in float32; of whole numbers ``a``."""
    if not a.is_floating_point():
        return a
    return (1 - weight) * a.float() + weight * b.float()
