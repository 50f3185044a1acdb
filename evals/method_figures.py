"""What docs/methods.md shows of each method's quality, in Markdown, from JSON records."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepdistill.cells.given import in_words
from stepdistill.cells.table import Group, spread_text

PLAIN = "`sid`"  # the students that the others' distance is divided by


def compared(name: str, measured: Sequence[Group]) -> str:
    """One row a teacher, a number of calls and what was given, with the place among the methods
    compared; "" for none."""
    lines = [
        "| teacher | budget | calls | seeds | ratio ↓ | place | accuracy, % ↑ | diversity → 1 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group in measured:
        for steps in sorted({row.steps for row in group.rows}):
            peers = [row for row in group.rows if row.steps == steps]
            for place, row in enumerate(peers, 1):
                if row.method == name:
                    ratio = spread_text(row.values["fid_ratio"], 2)
                    accuracy = spread_text(row.values["accuracy"], 2)
                    diversity = spread_text(row.values["diversity"], 3)
                    among = f"{place} of {len(peers)}" if len(peers) > 1 else "–"
                    cells = (ratio, among, accuracy, diversity)
                    given = ", ".join(filter(None, (group.teacher, in_words(row.given))))
                    about = f"{given} | {group.budget:,.0f} | {steps} | {len(row.seeds)}"
                    lines.append(f"| {about} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def modes(record: Mapping[str, Any], plot: str) -> str:
    """A row a divergence, and the plot. The record is of ``stepdistill.evals.mode_coverage``."""
    settings, runs = record["settings"], record["runs"]
    first, beside = next(iter(runs.items()))
    lines = [
        f"| divergence | modes kept of 8 | effective modes | more than `{first}` |",
        "|---|---:|---:|---:|",
    ]
    for name, own in runs.items():
        kept, effective = ([row[key] for row in own] for key in ("kept", "effective"))
        more = sum(a > b["effective"] for a, b in zip(effective, beside, strict=True))
        cells = [f"`{name}`", spread_text(kept, 1), spread_text(effective, 2)]
        cells.append("" if name == first else f"{more} of {len(own)}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"A generator too small for the ring of eight modes, {settings['seeds']} seeds, mean ± "
        f"standard deviation. A mode is kept by {100 * settings['kept']:g} % of all samples; the "
        "effective number is exp of the entropy over modes. Seed by seed the generators begin "
        "alike: the last column counts those that end with more effective modes.",
        "",
        f"![Samples of the first seed, and the effective modes of all]({plot})",
    ]
    return "\n".join(lines)


def cost(record: Mapping[str, Any]) -> str:
    """A sentence. The record is of ``stepdistill.evals.step_cost``."""
    low, high = record["ratio_quartiles"]
    return (
        f"An update of `{record['method']}` takes {record['ratio']:.3f} times one of "
        f"`{record['beside']}` (median of {record['pairs']} pairs, quartiles {low:.3f} and "
        f"{high:.3f}; digits, batches of {record['batch_size']}, {record['device']}, "
        f"{record['threads']} thread{'s' * (record['threads'] > 1)})."
    )


def forgetting(record: Mapping[str, Any]) -> str:
    """A row a method. The record is of ``stepdistill.evals.forgetting_record``."""
    digit = record["forget"]
    lines = [
        f"| students | seeds | requests of {digit} that show one, % | distance of the other digits "
        "| accuracy of the other digits, % |",
        "|---|---:|---:|---:|---:|",
    ]
    trained_alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["students"]:
        trained_alike.setdefault(_name(row), []).append(row)
    for name, rows in trained_alike.items():
        shown, others, right = (
            spread_text([row[key] for row in rows], digits)
            for key, digits in (("generated", 2), ("fid_others", 5), ("accuracy_others", 2))
        )
        lines.append(f"| {name} | {len(rows)} | {shown} | {others} | {right} |")
    lines += [
        "",
        f"{record['asked']:,} requests of the forgotten digit and {record['others']:,} of the "
        "others a student, mean ± standard deviation. " + " ".join(_beside(trained_alike)),
    ]
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    """Of a student: its method, and what it was to make instead."""
    override = row["override"]
    if override is None:
        return f"`{row['method']}`"
    return f"`{row['method']}`, override {', '.join(map(str, override)) or 'any other'}"


def _beside(trained_alike: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Distances of the others beside that of students that were to forget nothing."""
    distances = {
        name: statistics.fmean(row["fid_others"] for row in rows)
        for name, rows in trained_alike.items()
    }
    for name, distance in distances.items():
        if name != PLAIN and PLAIN in distances:
            times = distance / distances[PLAIN]
            yield f"The others' distance of {name} is {times:.2f} times that of {PLAIN}."
