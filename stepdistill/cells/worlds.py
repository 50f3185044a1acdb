"""The built-in worlds that methods are compared on, and the bar that each one's teacher sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..captioned_world import CAPTIONED
from ..errors import UserError
from ..evaluation.protocols import find_protocol
from ..metrics.caption_quality import caption_floor
from ..metrics.quality import floor
from ..parser import nearest
from ..sources import WORLDS


@dataclass(frozen=True)
class World:
    """A teacher, the protocol that its students are measured by, and ``floor``: what a perfect
    model scores at a count of samples. ``accuracy`` is the name of that metric."""

    teacher: str
    protocol: str
    accuracy: str
    floor: Callable[[int], float]

    @property
    def num(self) -> int:
        """Samples, unless told otherwise."""
        num = find_protocol(self.protocol).num
        assert num is not None
        return num

    def teacher_record(self) -> dict[str, Any]:
        """What is bundled with the teacher of its quality: at its best setting, with its floor."""
        path = WORLDS / self.teacher / "teacher" / "record.json"
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def bar(self) -> dict[str, Any]:
        """The teacher's figures, as they go into the record of each cell."""
        record = self.teacher_record()
        kept = ("fid", "fid_floor", self.accuracy, "diversity", "num_samples", "nfe", "steps")
        return {name: record[name] for name in (*kept, "guidance_scale")}

    def floor_at(self, num: int) -> float:
        """The bundled floor at the bundled count, else measured now."""
        record = self.teacher_record()
        return float(record["fid_floor"]) if num == record["num_samples"] else self.floor(num)


def fid_ratio(fid: float, fid_floor: float, bar: dict[str, Any]) -> float:
    """(student - floor) / (teacher - floor), each distance above the floor at its own count."""
    return float((fid - fid_floor) / (bar["fid"] - bar["fid_floor"]))


def _caption_floor(num: int) -> float:
    return caption_floor(num).fid


def find_world(teacher: str) -> World:
    """UserError for a teacher that has no measure of its own, with the nearest that has."""
    found = {"digits": World("digits", "digits", "class_accuracy", floor)}
    for name in CAPTIONED:
        found[name] = World(name, "captioned-digits", "caption_accuracy", _caption_floor)
    if teacher not in found:
        near = nearest(teacher, found)
        hint = f" Did you mean {near}?" if near else ""
        raise UserError(
            f"methods are compared on a built-in teacher, and {teacher} is none.{hint} There are: "
            f"{', '.join(found)}"
        )
    return found[teacher]
