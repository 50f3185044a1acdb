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
LETTERS = 48  # of what a picture was told
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
    """``rows`` of (label, a tile a seed); ``missing`` says in words which rows are not there.

    ``told`` is what the pictures of each seed were told, "" where that is nothing or not known, and
    None where two rows were told different things.
    """

    seeds: Sequence[int]
    told: Sequence[str | None]
    rows: Sequence[tuple[str, Sequence[Tile]]]
    missing: Sequence[str]

    @property
    def alike(self) -> bool:
        """Whether no picture was told anything else than the others of its column."""
        return None not in self.told

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
        return Grid(
            [], [], [], [*missing, f"No two models have a seed in common: {'; '.join(spans)}."]
        )
    shown = {label: files for label, files in own.items() if set(seeds) <= set(files)}
    others = [label for label in own if label not in shown]
    if others:
        missing.append(f"None of these seeds were saved for {listed(others)}.")
    tiles = [(label, [tile(files[seed]) for seed in seeds]) for label, files in shown.items()]
    told = [told_of([row for row in rows if row.label in shown], seed) for seed in seeds]
    if None in told:
        which = listed([str(seed) for seed, own in zip(seeds, told, strict=True) if own is None])
        missing.append(f"Not all pictures of seed {which} were told the same.")
    return Grid(seeds, told, tiles, missing)


def told_of(rows: Sequence[Row], seed: int) -> str | None:
    """What the pictures of ``seed`` were told, in words; "" if no row says, None if they differ."""
    said = {words for row in rows for record in row.records if (words := _told(record, seed))}
    return None if len(said) > 1 else "".join(said)


def _told(record: Record, seed: int) -> str:
    samples = record.part("samples")
    told = dict(zip(samples.get("seeds") or (), samples.get("told") or (), strict=False)).get(seed)
    if told is None:
        return ""
    return told if isinstance(told, str) else f"class {told}"


def shortened(words: str) -> str:
    """At most LETTERS letters, cut between words where there are any."""
    if len(words) <= LETTERS:
        return words
    cut = words[: LETTERS - 1]
    return f"{cut[: cut.rfind(' ')] if ' ' in cut else cut}…"


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
