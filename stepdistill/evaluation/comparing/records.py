"""The records that ``stepdistill eval`` writes, read back: one JSON object a file, or a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError, first_line
from .schema import IMAGES, check, finite


@dataclass(frozen=True)
class Record:
    """One evaluation; ``place`` is how a message names it, ``folder`` where its file lies."""

    place: str
    folder: Path
    content: Mapping[str, Any]

    @property
    def protocol(self) -> str:
        """By name."""
        return str(self.content["protocol"])

    @property
    def model(self) -> Mapping[str, Any]:
        """Whose images they are."""
        return self.part("model")

    @property
    def name(self) -> str:
        """What the model is called: its name, else its folder's; a student of ``stepdistill
        compare`` by its method."""
        if self.cell:
            return str(self.cell["method"])
        return str(self.model.get("name") or Path(self.model["path"]).name or self.model["path"])

    @property
    def cell(self) -> Mapping[str, Any]:
        """How its student was trained, if ``stepdistill compare`` did; else {}."""
        return self.part("cell")

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How it was sampled."""
        return self.part("sampling")

    @property
    def of_images(self) -> bool:
        """Whether it compares two sets of images, so that ``a`` is what was measured."""
        return self.protocol == IMAGES

    @property
    def steps(self) -> int | None:
        """Of the sampler."""
        steps: int | None = self.sampling.get("steps") or self.part("a").get("steps")
        return steps

    @property
    def num(self) -> int | None:
        """Images a repeat; None of statistics that do not say."""
        num: int | None = self.sampling.get("num")
        return num

    @property
    def seed(self) -> int | None:
        """Of the first image; image i of all repeats has ``seed`` + i.

        Images that were there already have none: a seed beside them is of what was drawn of them.
        """
        made = not self.of_images or self.part("a").get("kind") == "model"
        seed: int | None = self.sampling.get("seed") if made else None
        return seed

    @property
    def repeats(self) -> int:
        """How often ``num`` images were measured."""
        return int(self.content.get("repeats") or 1)

    @property
    def metrics(self) -> list[str]:
        """The names of all that was measured."""
        rows = self.content.get("per_seed") or ()
        names = {*self.content["metrics"], *(name for row in rows for name in row)}
        return sorted(names - {"seed"})

    @property
    def references(self) -> Mapping[str, Mapping[str, Any]]:
        """By the key of what is compared through; two sets of images have the same for all."""
        if not self.of_images:
            return self.part("reference")
        return dict.fromkeys(self.part("extractors"), self.part("reference"))

    def measured_on(self, metric: str) -> str | None:
        """The key of what ``metric`` looks through; a minimum of repeats looks as they do."""
        keys: Mapping[str, str | None] = self.part("measured_on")
        return keys.get(metric, keys.get(metric.partition("_min_of_")[0]))

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the record, {} if it is absent."""
        return self.content.get(name) or {}

    @property
    def seeds(self) -> set[int]:
        """Of the first image of each repeat."""
        if self.seed is None:
            return set()
        rows: Sequence[Mapping[str, Any]] = self.content.get("per_seed") or ()
        return {int(row["seed"]) for row in rows} or {self.seed}

    def by_seed(self, metric: str) -> dict[int | None, float]:
        """The finite values of ``metric`` by the seed of their first image.

        Those of ``per_seed``, or the one of ``metrics`` where ``per_seed`` has none.
        """
        rows = () if self.seed is None else self.content.get("per_seed") or ()
        found: dict[int | None, float] = {
            int(row["seed"]): row[metric] for row in rows if finite(row.get(metric))
        }
        if not found and finite(self.content["metrics"].get(metric)):
            found = {self.seed: self.content["metrics"][metric]}
        return {seed: float(value) for seed, value in found.items()}


def read_records(files: Sequence[str]) -> list[Record]:
    """All records of ``files``, .json or .jsonl, in order.

    UserError for a file that is missing, damaged, given twice or holds something else.
    """
    records: list[Record] = []
    known: dict[Path, str] = {}
    for file in files:
        path = Path(file)
        if path.resolve() in known:
            earlier = known[path.resolve()]
            also = "" if earlier == file else f", as {earlier} too"
            raise UserError(f"{file} is given twice{also}: give each record once")
        known[path.resolve()] = file
        records += _read(path)
    return records


def _read(path: Path) -> list[Record]:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the JSON file that stepdistill eval wrote")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no record {path}: give files of stepdistill eval") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the record {path}: {first_line(error)}") from error
    pieces = {str(path): text}
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        pieces = {f"{path}, line {i}": line for i, line in lines if line.strip()}
    if not any(piece.strip() for piece in pieces.values()):
        raise UserError(f"{path} is empty: write it again with stepdistill eval")
    return [Record(place, path.parent, _content(place, piece)) for place, piece in pieces.items()]


def _content(place: str, text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        if "Extra data" in str(error):
            raise UserError(
                f"{place} holds more than one JSON value: name a file of one record a line .jsonl"
            ) from error
        raise UserError(
            f"{place} is cut short, or is no JSON ({error}): write it again with stepdistill eval"
        ) from error
    check(place, content)
    checked: Mapping[str, Any] = content
    return checked
