"""Samples side by side: a row a model, and the same seed in the same column."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...errors import UserError
from ...pages import data_uri
from .records import Record
from .rows import Row
from .wording import listed

MOST = 8  # columns
LARGEST = 256  # pixels of a side; larger pictures are shrunk and stored as JPEG
QUALITY = 88  # of the JPEG, in percent


@dataclass(frozen=True)
class Tile:
    """One picture as a data URI; ``shrunk`` from what was saved."""

    source: str
    width: int
    height: int
    shrunk: bool


@dataclass(frozen=True)
class Grid:
    """``rows`` of (label, a tile a seed); ``missing`` says in words which rows are not there."""

    seeds: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Tile]]]
    missing: Sequence[str]

    @property
    def shrunk(self) -> bool:
        """Whether any picture is smaller than what was saved."""
        return any(tile.shrunk for _, tiles in self.rows for tile in tiles)


def grid(rows: Sequence[Row]) -> Grid:
    """The seeds that most of ``rows`` share, at most MOST of them, lowest first.

    Rows without samples, and rows without those seeds, are named in ``missing``. UserError for a
    picture that is damaged.
    """
    found = {row.label: pictures(row) for row in rows}
    bare = [label for label, own in found.items() if not own]
    own = {label: files for label, files in found.items() if files}
    counted = Counter(seed for files in own.values() for seed in files)
    most = max(counted.values(), default=0)
    seeds = sorted(seed for seed, count in counted.items() if count == most)[:MOST]
    missing = [f"No samples were saved, or are left, for {listed(bare)}."] if bare else []
    if len(own) > 1 and most == 1:
        spans = (f"{label} has {min(files)} to {max(files)}" for label, files in own.items())
        return Grid([], [], [*missing, f"No two models have a seed in common: {'; '.join(spans)}."])
    shown = {label: files for label, files in own.items() if set(seeds) <= set(files)}
    others = [label for label in own if label not in shown]
    if others:
        missing.append(f"None of these seeds were saved for {listed(others)}.")
    tiles = [(label, [tile(files[seed]) for seed in seeds]) for label, files in shown.items()]
    return Grid(seeds, tiles, missing)


def pictures(row: Row) -> dict[int, Path]:
    """The sample files of a row by their seed, those that are there."""
    return {seed: file for record in row.records for seed, file in _files(record)}


def _files(record: Record) -> list[tuple[int, Path]]:
    """Picture i of a samples folder, 000000.png and on, has seed i of the record's list."""
    samples = record.part("samples")
    if not samples.get("folder"):
        return []
    folder = record.folder / samples["folder"]
    named = ((seed, folder / f"{i:06d}.png") for i, seed in enumerate(samples.get("seeds") or ()))
    return [(seed, file) for seed, file in named if file.is_file()]


def tile(file: Path) -> Tile:
    """A picture as it was saved, or shrunk to LARGEST pixels. UserError if it is damaged."""
    try:
        with Image.open(file) as image:
            image.load()
            if max(image.size) <= LARGEST:
                return Tile(
                    data_uri(file.read_bytes(), "image/png"), image.width, image.height, False
                )
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{file} is damaged ({error}): evaluate again, or remove that samples folder"
        ) from error
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.save(written, format="JPEG", quality=QUALITY)
    return Tile(data_uri(written.getvalue(), "image/jpeg"), small.width, small.height, True)
