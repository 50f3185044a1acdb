"""What a record must hold, and what it may: checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UserError

FORMAT = 1  # the newest that is understood
IMAGES = "images"  # the protocol of two sets of images, A and the reference
OF_SAMPLES = ("sampling.num", "sampling.seed")  # what images that were there already may lack


def finite(value: Any) -> bool:
    """Whether it is a number, and neither NaN nor Inf."""
    return _is_number(value) and math.isfinite(value)


def check(place: str, content: Any) -> None:
    """UserError unless ``content`` is a record that this program understands."""
    if not isinstance(content, dict):
        raise UserError(f"{place} holds no record of stepdistill eval: it is no JSON object")
    version: Any = content.get("format")
    if _is_whole(version) and version > FORMAT:
        raise UserError(
            f"{place} was written by a newer stepdistill (its format is {version}, this one reads "
            f"{FORMAT}): update stepdistill"
        )
    if content.get("metric") == "fid" and "protocol" not in content:
        raise UserError(
            f"{place} is of stepdistill fid, whose lines do not say enough to be compared: measure "
            "with stepdistill eval images A B --metrics fid --output FILE.json"
        )
    of_images = content.get("protocol") == IMAGES
    needed = {name: own for name, own in NEEDED.items() if not (of_images and name in OF_SAMPLES)}
    reference = {"reference": OBJECT} if of_images else {}
    for name, (fits, words) in needed.items():
        value = _at(content, name)
        if value is None:
            raise UserError(f"{place} is no record of stepdistill eval: it lacks {name}")
        if not fits(value):
            raise UserError(f"{place} is damaged: its {name} is not {words}")
    if not (_at(content, "model.path") or _at(content, "model.name")):
        raise UserError(f"{place} is no record of stepdistill eval: it lacks model.path")
    for name, (fits, words) in {**NEEDED, **OPTIONAL, **reference}.items():
        value = _at(content, name)
        if value is not None and not fits(value):
            raise UserError(f"{place} is damaged: its {name} is not {words}")


def _at(content: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name, None if a part of it is absent."""
    value: Any = content
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_positive(value: Any) -> bool:
    return finite(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_numbers(value: Any) -> bool:
    return _is_object(value) and all(v is None or _is_number(v) for v in value.values())


def _are_errors(value: Any) -> bool:
    return _are_numbers(value) and all(v is None or not v < 0 for v in value.values())


def _are_seeds(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _is_training(value: Any) -> bool:
    own = value if _is_object(value) else {}
    named = _is_text(own.get("teacher")) and _is_text(own.get("method"))
    return named and _is_positive(own.get("budget")) and _is_object(own.get("settings"))


def _are_told(value: Any) -> bool:
    fits = (_is_text(one) or _is_whole(one) or one is None for one in value or ())
    return isinstance(value, list) and all(fits)


def _are_repeats(value: Any) -> bool:
    rows: list[Any] = value if isinstance(value, list) else [None]
    return all(_are_numbers(row) and _is_whole(row.get("seed")) for row in rows)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_texts_by_name(value: Any) -> bool:
    return _is_object(value) and all(v is None or _is_text(v) for v in value.values())


def _are_objects(value: Any) -> bool:
    return _is_object(value) and all(map(_is_object, value.values()))


Check = tuple[Callable[[Any], bool], str]
OBJECT: Check = (_is_object, "an object")
COUNT: Check = (_is_count, "a whole number above 0")
WHOLE: Check = (_is_whole, "a whole number")
ABOVE_ZERO: Check = (_is_positive, "a number above 0")
TEXT: Check = (_is_text, "text")
# dotted names: what every record has, and what it may lack or hold null for
NEEDED: dict[str, Check] = {
    "format": COUNT,
    "protocol": TEXT,
    "metrics": (_are_numbers, "numbers by name"),
    "model": OBJECT,
    "sampling": OBJECT,
    "sampling.num": COUNT,
    "sampling.seed": WHOLE,
}
OPTIONAL: dict[str, Check] = {
    "repeats": COUNT,
    "errors": (_are_errors, "numbers by name, none below 0"),
    "per_seed": (_are_repeats, "a list of objects of numbers, each with its seed"),
    "notes": (_are_texts, "a list of texts"),
    "model.path": TEXT,
    "model.name": TEXT,
    "model.role": TEXT,
    "model.sha256": OBJECT,
    "model.config_sha256": OBJECT,
    "model.call": OBJECT,
    "sampling.steps": COUNT,
    "sampling.calls": ABOVE_ZERO,
    "sampling.guidance_scale": (finite, "a number"),
    "sampling.told": TEXT,
    "sampling.told_sha256": TEXT,
    "a": OBJECT,
    "extractors": (_are_objects, "objects by name"),
    "reference": (_are_objects, "objects by name"),
    "measured_on": (_are_texts_by_name, "texts by name"),
    "details": (_are_objects, "objects by name"),
    "speed": OBJECT,
    "speed.ms_per_image": ABOVE_ZERO,
    "speed.ms_one_image": ABOVE_ZERO,
    "speed.peak_memory_bytes": COUNT,
    "speed.batch_size": COUNT,
    "speed.device": TEXT,
    "speed.memory_of": TEXT,
    "cell": (_is_training, "the teacher, method, budget and settings of a training"),
    "samples": OBJECT,
    "samples.folder": TEXT,
    "samples.told": (_are_told, "a list of texts, whole numbers and nulls"),
    "samples.seeds": (_are_seeds, "a list of whole numbers"),
}
