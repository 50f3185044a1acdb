"""Teacher and students side by side, in a table's rows and in words, from a run's results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]

# key of a model's record, what it is called, how it is written
ROWS = (
    ("nfe", "Network calls", "{:,}"),
    ("fid", "Frechet distance", "{:.4f}"),
    ("fid_ratio", "Ratio to the teacher", "{:.2f}"),
    ("class_accuracy", "Class accuracy", "{:.2f} %"),
    ("caption_accuracy", "Caption accuracy", "{:.2f} %"),
    ("diversity", "Diversity", "{:.3f}"),
    ("num_samples", "Images measured", "{:,}"),
    ("ms_per_image", "Time per image", "{:.3g} ms"),
    ("speed_up", "Speed-up", "{:,.1f} times"),
)


def students(results: Record) -> list[Record]:
    """The measured students by their number of calls, the main one with the ratios of the whole."""
    if not results:
        return []
    whole = {key: results[key] for key in ("fid_ratio", "speed_up") if key in results}
    found = [*results.get("students", ()), {**whole, **results["student"]}]
    return sorted({row["nfe"]: row for row in found}.values(), key=lambda row: int(row["nfe"]))


def measured_rows(results: Record) -> list[tuple[str, str, str]]:
    """The rows that the teacher or a student has a value for: worlds differ in what is measured."""
    models = [results["teacher"], *students(results)] if results else []
    return [row for row in ROWS if any(row[0] in model for model in models)]


def lost(teacher: Record, student: Record) -> str:
    """What distillation cost and won in plain sentences; what was not measured is left out."""
    calls = f"{student['nfe']} network call{'s' if student['nfe'] > 1 else ''}"
    said = [f"{calls} a sample instead of {teacher.get('nfe', '?')}"]
    if known(student, "speed_up"):
        said[0] += f", and {student['speed_up']:,.1f} times as fast"
    if known(teacher, "fid") and known(student, "fid"):
        change = f"from {teacher['fid']:.4f} to {student['fid']:.4f}"
        verb = "rose" if student["fid"] > teacher["fid"] else "fell"
        said.append(f"The Frechet distance {verb} {change} (lower is better)")
        if known(student, "fid_ratio") and student["fid_ratio"] > 0:
            said[-1] += (
                f": {student['fid_ratio']:.2f} times the teacher's, both counted from the floor"
            )
    for kind in ("class", "caption"):
        key = f"{kind}_accuracy"
        if known(teacher, key) and known(student, key):
            points = student[key] - teacher[key]
            change = f"{'rose' if points > 0 else 'fell'} by {abs(points):.2f} points"
            change = change if round(points, 2) else "stayed the same"
            said.append(f"{kind.capitalize()} accuracy {change}, now {student[key]:.2f} %")
    return ". ".join(said) + "."


def cell(value: Any, form: str) -> str:
    """``value`` as ``form`` writes it, a dash if it was not measured."""
    return form.format(value) if _finite(value) else "–"


def known(record: Record, key: str) -> bool:
    """Whether ``record`` has a finite number there."""
    return _finite(record.get(key))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
