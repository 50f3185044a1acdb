"""Curves as inline SVG that takes its colours and letters from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .comparison import Record, known
from .inline_svg import MARK, NO_METADATA, SERIES, STYLE, inline, short

POINTS = 300  # drawn of a curve: more are averaged, neighbours together

# title of a plot, the metrics it shows
PLOTS = (
    ("Quality during training", r"eval/(?!num_samples|seconds|diversity_alarm).+"),
    ("Generator: loss and its terms", r"generator/(?!grad_norm|x0_).+"),
    ("Critic: loss and its terms", r"critic/(?!grad_norm|x0_).+"),
    ("Gradient norms before clipping", r".+/grad_norm"),
    ("The student's samples", r".+/x0_.+"),
    ("Throughput and memory", r"images_per_second|memory_gb"),
)
NAMES = {
    "fid": "Frechet distance",
    "teacher_distance": "Frechet distance to the teacher",
    "kid": "kernel distance",
    "teacher_kid": "kernel distance to the teacher",
    "class_accuracy": "class accuracy, %",
    "caption_accuracy": "caption accuracy, %",
    "memory_gb": "memory, GB",
}


@dataclass(frozen=True)
class Curve:
    """One quantity over iterations; ``teacher`` is the teacher's value of it, if it has one."""

    title: str
    iterations: Sequence[int]
    values: Sequence[float]
    teacher: float | None = None


def plots(metrics: Sequence[Record], teacher: Record) -> list[tuple[str, Markup]]:
    """(title, drawing) for each group of metrics that has any finite value."""
    named = {key for line in metrics for key in line}
    keys = sorted(named, key=lambda key: (not key.endswith(("/loss", "/fid")), key))
    drawn = []
    for title, pattern in PLOTS:
        curves = [curve(key, metrics, teacher) for key in keys if re.fullmatch(pattern, key)]
        curves = [one for one in curves if one.values]
        if curves:
            drawn.append((title, draw(title, curves)))
    return drawn


def curve(key: str, metrics: Sequence[Record], teacher: Record) -> Curve:
    """The finite values of one metric; an evaluation is compared with the teacher's.

    Few samples raise a Frechet distance, so it is compared at equal sample counts only.
    """
    lines = [line for line in metrics if known(line, key)]
    owner, _, leaf = key.rpartition("/")
    name = owner if leaf == "grad_norm" else NAMES.get(leaf, leaf.replace("_", " "))
    compared = teacher[leaf] if owner == "eval" and known(teacher, leaf) else None
    counts = {line.get("eval/num_samples") for line in lines}
    if key == "eval/fid" and counts != {teacher.get("num_samples")}:
        compared = None
        name += "".join(f" ({count:,} samples)" for count in counts if isinstance(count, int))
    return Curve(name, [i["iteration"] for i in lines], [i[key] for i in lines], compared)


def draw(title: str, curves: Sequence[Curve]) -> Markup:
    """``curves`` below each other over the same iterations, as an <svg> element named ``title``."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        height = 0.5 + 1.25 * len(curves)  # inches; margins by hand, as laying out takes seconds
        figure = Figure(figsize=(4.3, height))
        figure.subplots_adjust(0.145, 0.48 / height, 0.985, 1 - 0.25 / height, hspace=0.36)
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, curve in zip(panels, curves, strict=True):
            _panel(axes, curve)
        panels[-1].set_xlabel("iteration")
        panels[-1].set_xlim(left=0)
        panels[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=NO_METADATA)
    named = "; ".join(f"{c.title} {short(c.values[0])} to {short(c.values[-1])}" for c in curves)
    return inline(written.getvalue(), title, f"{title}, from first to last: {named}")


def _panel(axes: Axes, curve: Curve) -> None:
    """One curve, its name above on the left and its last value on the right."""
    iterations, values = thinned(curve.iterations), thinned(curve.values)
    few = len(values) <= 30
    axes.plot(iterations, values, color=SERIES, linewidth=1.6, marker="o" if few else "", ms=3.5)
    if curve.teacher is not None:
        axes.axhline(curve.teacher, color=MARK, linewidth=1.4, linestyle=(0, (4, 3)))
    shown = [*values, *([] if curve.teacher is None else [curve.teacher])]
    lowest, highest = min(shown), max(shown)
    if lowest > 0 and highest > 10 * lowest:
        axes.set_yscale("log")
        parts = (1.0, 2.0, 5.0) if highest < 30 * lowest else (1.0, 3.0)
        axes.yaxis.set_major_locator(LogLocator(subs=parts if highest < 1e3 * lowest else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.grid(True, axis="y")
    teacher = "" if curve.teacher is None else f" (teacher {short(curve.teacher)})"
    axes.set_title(curve.title, loc="left", fontsize=10.5, y=1.0)
    axes.set_title(f"{short(curve.values[-1])}{teacher}", loc="right", fontsize=10.5, y=1.0)


def thinned(values: Sequence[float]) -> list[float]:
    """At most POINTS means of neighbouring values."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(POINTS, len(values)))
    return [float(part.mean()) for part in parts]
