"""The comparison of methods as a table: mean and spread over the seeds of each, from records."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..evaluation.comparing.records import Record
from .cell import CELL
from .given import in_words
from .worlds import find_world

# key of a cell, head of its column, digits behind the point, divided by
COLUMNS = (
    ("fid_ratio", "ratio ↓", 2, 1),
    ("accuracy", "accuracy, % ↑", 2, 1),
    ("diversity", "diversity → 1", 3, 1),
    ("iterations", "iterations", 0, 1),
    ("processor_seconds", "seconds", 0, 1),
    ("update_peak_bytes", "memory, MiB", 0, 2**20),
)


@dataclass(frozen=True)
class Row:
    """A method in a number of steps: the values of its seeds by name, None where not known.

    ``given`` are settings in place of the preset's.
    """

    method: str
    steps: int
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float | None, ...]]
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, and what it was given."""
        return ", ".join(filter(None, (self.method, in_words(self.given))))

    def json(self) -> dict[str, Any]:
        """Means and standard deviations over the seeds, as plain values."""
        found = {name: _spread(values) for name, values in self.values.items()}
        named = {
            name: None if own is None else {"mean": own[0], "std": own[1]}
            for name, own in found.items()
        }
        own = {"method": self.method, "given": dict(self.given), "steps": self.steps}
        return {**own, "seeds": [*self.seeds], **named}


@dataclass(frozen=True)
class Group:
    """Cells that may be compared: of one teacher, one budget and one count of samples."""

    teacher: str
    budget: float
    num_samples: int
    bar: Mapping[str, Any]
    accuracy: str
    rows: tuple[Row, ...]
    stopped: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [row.json() for row in self.rows]
        own = {name: getattr(self, name) for name in ("teacher", "budget", "num_samples")}
        return {**own, "bar": dict(self.bar), "rows": rows, "stopped": [*self.stopped]}


def groups(records: Sequence[Record]) -> list[Group]:
    """The tables that ``records`` make. UserError for one that is of no cell."""
    found: dict[tuple[str, float, int], list[Record]] = {}
    for record in records:
        cell = record.part(CELL)
        if not cell:
            raise UserError(f"{record.place} is of no cell: stepdistill compare writes those")
        key = (cell["teacher"], cell["budget"], cell["num_samples"])
        found.setdefault(key, []).append(record)
    return [_group(*key, own) for key, own in sorted(found.items())]


def _group(teacher: str, budget: float, num: int, records: Sequence[Record]) -> Group:
    told = [record.part(CELL) for record in records]
    by_task: dict[tuple[int, str, str], list[Record]] = {}
    for record, cell in zip(records, told, strict=True):
        task = (cell["steps"], cell["method"], in_words(cell.get("given", {})))
        by_task.setdefault(task, []).append(record)
    rows = [_row(own) for own in by_task.values()]
    rows.sort(key=lambda row: (row.steps, statistics.fmean(known(row.values["fid_ratio"]))))
    stopped = [f"{c['method']}-{c['steps']}-{c['seed']}" for c in told if c["stopped"]]
    first = told[0]
    return Group(
        teacher,
        budget,
        num,
        first["bar"],
        first["accuracy_metric"],
        tuple(rows),
        tuple(sorted(stopped)),
    )


def _row(records: Sequence[Record]) -> Row:
    ordered = sorted(records, key=lambda record: int(record.part(CELL)["seed"]))
    cells = [record.part(CELL) for record in ordered]
    metrics = [record.content["metrics"] for record in ordered]
    values = {key: tuple(cell[key] for cell in cells) for key, *_ in COLUMNS if key in cells[0]}
    named = {"accuracy": cells[0]["accuracy_metric"], "diversity": "diversity", "fid": "fid"}
    for name, metric in named.items():  # a diversity needs two samples that are told the same
        values[name] = tuple(own.get(metric) for own in metrics)
    first, seeds = cells[0], tuple(cell["seed"] for cell in cells)
    return Row(first["method"], first["steps"], seeds, values, first.get("given", {}))


def markdown(made: Sequence[Group]) -> str:
    """A Markdown table a group, its teacher and budget above it, what its numbers are below it."""
    return "\n\n".join(_markdown(group) for group in made)


def _markdown(group: Group) -> str:
    heads = ["method", "calls", "seeds", *(head for _, head, *_ in COLUMNS)]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    bar = group.bar
    guidance = "" if bar["guidance_scale"] == 1 else f", guidance {bar['guidance_scale']:g}"
    own = [f"{bar[group.accuracy]:.2f}", f"{bar['diversity']:.3f}", "", "", ""]
    lines.append([f"teacher{guidance}", str(bar["nfe"]), "1", "1", *own])
    if bar["guidance_scale"] != 1:
        lines.append(_unguided(group))
    for row in group.rows:
        cells = [spread_text(row.values[key], digits, unit) for key, _, digits, unit in COLUMNS]
        lines.append([row.label, str(row.steps), str(len(row.seeds)), *cells])
    shown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = f"**{group.teacher}, {group.budget:,.0f} network calls a cell**"
    return f"{about}\n\n{shown}\n\n{_below(group)}"


def _unguided(group: Group) -> list[str]:
    """The teacher alone, from what is bundled with it: methods that guide both scores match it."""
    alone, bar = _alone(group.teacher), group.bar
    floor = find_world(group.teacher).teacher_record()["grid_floor"]
    ratio = (alone["fid"] - floor) / (bar["fid"] - bar["fid_floor"])
    own = [f"{ratio:.2f}", f"{alone[group.accuracy]:.2f}", f"{alone['diversity']:.3f}"]
    return ["teacher, unguided", str(alone["nfe"]), "1", *own, "", "", ""]


def _alone(teacher: str) -> dict[str, Any]:
    """What is bundled with a teacher of its quality without guidance."""
    grid: list[dict[str, Any]] = find_world(teacher).teacher_record()["grid"]
    return next(row for row in grid if row["guidance_scale"] == 1)


def _below(group: Group) -> str:
    bar = group.bar
    said = [
        "A backward counts two network calls. "
        f"{group.num_samples:,} samples a figure, mean ± standard deviation over training seeds.",
        "The ratio is student to teacher, each Frechet distance above what a perfect model scores "
        f"at its count (the teacher's {bar['fid']:.4g} of {bar['num_samples']:,} samples, above "
        f"{bar['fid_floor']:.4g}).",
        "Seconds are the processor's, of training alone; memory is the most that an update holds, "
        "weights and moments included, as counted for a CPU.",
    ]
    if bar["guidance_scale"] != 1:
        count = _alone(group.teacher)["num_samples"]
        said.append(f"The unguided teacher's figures are of {count:,} samples.")
    if group.stopped:
        said.append(f"Stopped at a limit of time, before the budget: {', '.join(group.stopped)}.")
    return " ".join(said)


def known(values: Sequence[float | None]) -> list[float]:
    """Those that are."""
    return [value for value in values if value is not None]


def _spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """(mean, standard deviation with n - 1; None of one value), None where nothing is known."""
    found = known(values)
    if not found:
        return None
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def spread_text(values: Sequence[float | None], digits: int, unit: int = 1) -> str:
    """Mean ± standard deviation over ``unit``; a dash where nothing is known."""
    spread = _spread([value / unit for value in known(values)])
    if spread is None:
        return "–"
    mean, deviation = spread
    return f"{mean:,.{digits}f}" + ("" if not deviation else f" ± {deviation:,.{digits}f}")
