"""The report of a run: one self-contained page of what lies in its folder."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from .comparison import Record, cell, lost, measured_rows, students
from .errors import UserError
from .methods import METHODS
from .pages import data_uri, environment, write_page
from .plots import plots
from .runs import RunFolder, read_metrics
from .watching import remarks

FILES = ("config.yaml", "metrics.jsonl", "results.json")  # any of them makes a folder a run's
EARLIER = 24  # sample grids shown beside the newest, evenly spread
EARLIER_SIZE = 800  # pixels; larger ones are shrunk


@dataclass(frozen=True)
class Picture:
    """A sample grid as a data URI."""

    iteration: int
    source: str
    width: int
    height: int


def write_report(run: Path, output: Path | None = None) -> Path:
    """Render ``run`` to ``output`` (default run/report.html), written aside and renamed.

    What is not in the folder yet is named on the page. Raises UserError if ``run`` is not a run
    folder or a file in it is damaged, and StepDistillError if the page cannot be written.
    """
    output = output or run / "report.html"
    return write_page(render(run), output, "report")


def render(run: Path) -> str:
    """The page of ``run`` as HTML; raises UserError as :func:`write_report` does."""
    if not any((run / name).is_file() for name in FILES):
        raise UserError(f"{run} is not a run folder: it has none of {', '.join(FILES)}")
    folder = RunFolder(run)
    settings, command = read_settings(run / "config.yaml")
    results = read_results(run / "results.json")
    with _reading(folder.metrics):
        metrics = read_metrics(folder.metrics)
        last = max((line["iteration"] for line in metrics), default=0)
    grids = sorted(folder.samples.glob("[0-9]*.png"))
    method = results.get("method") or "".join(re.findall(r"train (\w+)", command)[:1])
    templates = environment()
    templates.filters["cell"] = cell
    return templates.get_template("report.html.j2").render(
        run=run.resolve().name,
        method=method,
        card=METHODS[method].card if method in METHODS else None,
        teacher=settings.get("teacher") or results.get("world") or "an unnamed teacher",
        results=results,
        students=students(results),
        rows=measured_rows(results),
        lost=[lost(results["teacher"], student) for student in students(results)],
        remarks=remarks(metrics),
        plots=plots(metrics, results.get("teacher", {})),
        iteration=last,
        newest=picture(grids[-1]) if grids else None,
        earlier=[picture(path, EARLIER_SIZE) for path in spread(grids[:-1])],
        inner={path.name: picture(newest) for path, newest in inner_runs(run)},
        settings=flat(settings),
        command=command,
        usage=usage(folder.student),
    )


def read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """(the settings, the command in the first line) of config.yaml; empty if there is none."""
    if not path.is_file():
        return {}, ""
    with _reading(path):
        text = path.read_text()
        settings: dict[str, Any] = dict(yaml.safe_load(text) or {})
    first = text.partition("\n")[0]
    return settings, first.lstrip("# ") if first.startswith("#") else ""


def read_results(path: Path) -> dict[str, Any]:
    """results.json, or {} if there is none; UserError if it compares no two models."""
    if not path.is_file():
        return {}
    with _reading(path):
        results: dict[str, Any] = json.loads(path.read_text())
        if not all(isinstance(results[key], dict) for key in ("teacher", "student")):
            raise TypeError("teacher and student are not records")
        students(results)
    return results


def picture(path: Path, largest: int | None = None) -> Picture:
    """A PNG as a data URI, shrunk to ``largest`` pixels; UserError if it is damaged."""
    with _reading(path), Image.open(path) as image:
        image.load()
        data = path.read_bytes()
        if largest is not None and max(image.size) > largest:
            image.thumbnail((largest, largest))
            written = io.BytesIO()
            image.save(written, format="PNG")
            data = written.getvalue()
        return Picture(int(path.stem), data_uri(data, "image/png"), *image.size)


def inner_runs(run: Path) -> list[tuple[Path, Path]]:
    """(folder, its newest grid) of the runs inside of ``run``: quickstart's four_steps is one."""
    found = [(path.parent, sorted(path.glob("[0-9]*.png"))) for path in run.glob("*/samples")]
    return sorted((folder, grids[-1]) for folder, grids in found if grids)


def spread(grids: Sequence[Path]) -> list[Path]:
    """At most EARLIER of ``grids``, evenly spread, newest first."""
    step = max(1, math.ceil(len(grids) / EARLIER))
    return list(grids[::-1][::step])


def usage(student: Path) -> str:
    """The Python lines of the exported student's model card, with its place; "" without one."""
    card = student / "README.md"
    text = card.read_text() if card.is_file() else ""
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    return found[1].strip().replace('"."', f'"{student.as_posix()}"') if found else ""


def flat(settings: Record, prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names, as they are given on the command line."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        named |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return named


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Any way in which a file can be damaged -> a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged, or not what a run writes: {error}") from error
