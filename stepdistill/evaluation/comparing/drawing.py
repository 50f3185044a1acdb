"""A trade-off as an SVG element in the page's colours: points, intervals, the front, labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ...inline_svg import MARK, NO_METADATA, RULE, SERIES, STYLE, inline, short
from .front import Tradeoff
from .placing import Box, placed

WIDTH, HEIGHT = 4.6, 3.3  # inches
SIZE = 9.5  # of labels, in points
LONGEST = 24  # letters of a label; longer ones lose their middle
NUMBERS = 3.0  # from the left edge, in points
AROUND = 5.0  # half a marker with some air, in points


def draw(tradeoff: Tradeoff, title: str) -> Markup:
    """``tradeoff`` as an <svg> element; ``title`` keeps its identifiers apart on the page.

    Labels are the rows' names where there is room for all, else their numbers in the table; where
    there is no room for these either, the points have none.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=72)  # so that a pixel is a point
        axes = figure.add_axes((0.13, 0.16, 0.85, 0.80))
        _scale(axes, tradeoff)
        _points(axes, tradeoff)
        figure.draw_without_rendering()
        _make_room(axes)
        _labels(axes, tradeoff)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=NO_METADATA)
    kept = [tradeoff.points[i] for i in tradeoff.front()]
    named = "; ".join(f"{p.label} {short(p.cost)}, {short(p.quality.value)}" for p in kept)
    label = f"{tradeoff.metric.label} against {tradeoff.cost}. On the front: {named or 'none'}"
    return inline(written.getvalue(), title, label)


def _make_room(axes: Axes) -> None:
    """Move the left edge so far that the longest number beside it is whole."""
    outside = axes.get_tightbbox()
    assert outside is not None
    frame, width = axes.get_position(), 72 * WIDTH
    left = frame.x0 + max(0.0, NUMBERS - outside.x0) / width
    axes.set_position((left, frame.y0, frame.x1 - left, frame.height))


def _scale(axes: Axes, tradeoff: Tradeoff) -> None:
    """Axes with room around the points, logarithmic where they span a factor of four or ten."""
    costs = [point.cost for point in tradeoff.points]
    ends = [end for p in tradeoff.points for end in (p.quality.low, p.quality.high)]
    if max(costs) >= 4 * min(costs):
        axes.set_xscale("log")
        room = (max(costs) / min(costs)) ** 0.12
        axes.set_xlim(min(costs) / room, max(costs) * room)
        whole = all(cost == int(cost) for cost in costs)
        nice = LogLocator(subs=(1.0, 2.0, 5.0) if max(costs) < 100 * min(costs) else (1.0,))
        axes.xaxis.set_major_locator(FixedLocator(_apart(costs)) if whole else nice)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.15 * (max(costs) - min(costs)) or 0.3 * max(costs)
        axes.set_xlim(max(0.0, min(costs) - room), max(costs) + room)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if min(ends) > 0 and max(ends) >= 10 * min(ends):
        axes.set_yscale("log")
        room = (max(ends) / min(ends)) ** 0.15
        axes.set_ylim(min(ends) / room, max(ends) * room)
        parts = (1.0, 2.0, 5.0) if max(ends) < 1e3 * min(ends) else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=parts))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        room = 0.18 * (max(ends) - min(ends)) or 0.1 * abs(max(ends)) or 1.0
        axes.set_ylim(min(ends) - room, max(ends) + room)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel(tradeoff.cost)
    axes.grid(True, axis="y")


def _apart(costs: Sequence[float]) -> list[float]:
    """Of the costs themselves, those that leave room for a tick each: 1, 2, 4, 50."""
    kept: list[float] = []
    for cost in sorted(set(costs)):
        if not kept or cost / kept[-1] >= (max(costs) / min(costs)) ** 0.11:
            kept.append(cost)
    return kept


def _points(axes: Axes, tradeoff: Tradeoff) -> None:
    """Filled on the front, hollow off it; a diamond for the teacher; the front as a staircase."""
    front = tradeoff.front()
    if len(front) > 1:
        steps = [tradeoff.points[i] for i in front]
        axes.plot(
            [p.cost for p in steps],
            [p.quality.value for p in steps],
            drawstyle="steps-post",
            color=SERIES,
            linewidth=1.2,
            alpha=0.55,
            zorder=1,
        )
    for i, point in enumerate(tradeoff.points):
        colour = MARK if point.is_teacher else SERIES
        axes.errorbar(
            point.cost,
            point.quality.value,
            yerr=point.quality.half,
            color=colour,
            marker="D" if point.is_teacher else "o",
            markersize=6.5,
            markerfacecolor=colour if i in front else "none",
            markeredgewidth=1.5,
            capsize=3,
            elinewidth=1.2,
        )


def _labels(axes: Axes, tradeoff: Tradeoff) -> None:
    """Names beside their points, joined by a line where they stand apart."""
    points = [(point.cost, point.quality.value) for point in tradeoff.points]
    spots = [tuple(map(float, axes.transData.transform(point))) for point in points]
    places = [(x, y) for x, y in spots]
    bars = [_bar(axes, tradeoff, i, x) for i, (x, _) in enumerate(places)]
    marks = [Box(x - AROUND, y - AROUND, x + AROUND, y + AROUND) for x, y in places]
    frame = Box(*axes.get_window_extent().extents)
    names = [shortened(point.label) for point in tradeoff.points]
    numbers = [str(point.number) for point in tradeoff.points]
    for words, taken in (
        (names, [*marks, *bars, *_stairs(axes, tradeoff)]),
        (names, [*marks, *bars]),
        (numbers, [*marks, *bars]),
        (numbers, marks),
    ):
        sizes = [_size(word) for word in words]
        boxes = placed(places, sizes, taken, frame)
        if boxes is not None:
            for number, word, box, place in zip(numbers, words, boxes, places, strict=True):
                _write(axes, word, box, place).set_gid(f"label-{number}")
            return


def _write(axes: Axes, word: str, box: Box, place: tuple[float, float]) -> Text:
    x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    nearest = min(max(place[0], box.left), box.right), min(max(place[1], box.bottom), box.top)
    if (nearest[0] - place[0]) ** 2 + (nearest[1] - place[1]) ** 2 > 14**2:
        ends = axes.transData.inverted().transform([place, nearest])
        axes.plot(*zip(*ends, strict=True), color=RULE, linewidth=0.8, zorder=0)
    x, y = axes.transData.inverted().transform((x, y))
    return axes.text(x, y, word, fontsize=SIZE, ha="center", va="center", parse_math=False)


def _bar(axes: Axes, tradeoff: Tradeoff, i: int, x: float) -> Box:
    """The interval of point ``i``, a little wider than its caps."""
    point = tradeoff.points[i]
    ends = [(point.cost, point.quality.low), (point.cost, point.quality.high)]
    low, high = (float(y) for _, y in axes.transData.transform(ends))
    return Box(x - 4, low - 1, x + 4, high + 1)


def _stairs(axes: Axes, tradeoff: Tradeoff) -> list[Box]:
    """The segments of the front."""
    corners = [tradeoff.points[i] for i in tradeoff.front()]
    found = []
    for a, b in pairwise(corners):
        ends = [(a.cost, a.quality.value), (b.cost, b.quality.value)]
        (left, y), (right, end) = axes.transData.transform(ends)
        found.append(Box(float(left), float(y) - 1, float(right), float(y) + 1))
        low, high = sorted((float(y), float(end)))
        found.append(Box(float(right) - 1, low, float(right) + 1, high))
    return found


def _size(word: str) -> tuple[float, float]:
    """Width and height with some air, in matplotlib's letters, which are wider than most pages'."""
    font = FontProperties(size=SIZE)
    width, height, _ = text_to_path.get_text_width_height_descent(word, font, False)
    return float(width) + 4, float(height) + 3


def shortened(name: str) -> str:
    """At most LONGEST letters: the middle of a long name is left out."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
