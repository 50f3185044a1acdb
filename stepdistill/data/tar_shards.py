"""Tar shards as webdataset writes them, with random access: an index of offsets, read once.

Files of one sample share their name up to the first dot: 000017.jpg + 000017.txt.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .tables import TEXT_COLUMNS, choose_column, text_of

IMAGES, CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")  # the first that is there


class Span(NamedTuple):
    """Where the bytes of a file lie in a tar file."""

    begin: int
    length: int


class Entry(NamedTuple):
    """One sample: its tar file, its name there, and where its two files lie."""

    tar: Path
    key: str
    image: Span
    caption: Span
    is_json: bool


@dataclass(frozen=True)
class TarShards:
    """``column`` is the caption's in .json captions."""

    entries: Sequence[Entry]
    column: str | None

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The tar file and the sample's name in it."""
        entry = self.entries[index]
        return f"{entry.key} in {entry.tar}"

    def image(self, index: int) -> io.BytesIO:
        """The encoded image."""
        return io.BytesIO(_read(self.entries[index].tar, self.entries[index].image))

    def caption(self, index: int) -> str:
        """From the .txt, or the column of the .json."""
        entry, name = self.entries[index], self.name(index)
        content = _read(entry.tar, entry.caption)
        try:
            if not entry.is_json:
                return content.decode("utf-8-sig").strip()
            found = json.loads(content)
        except ValueError as error:  # UnicodeDecodeError is one too
            raise UserError(f"the caption of {name} is not readable: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"the .json of {name} must hold an object such as {{...}}")
        column = choose_column(f"the .json of {name}", [*found], self.column, TEXT_COLUMNS)
        return text_of(found[column], column, name)


def tar_files(source: str) -> list[Path]:
    """Those of a file, of a pattern such as {000..099}.tar or {a,b}.tar, or directly in a folder.

    Sorted in a folder, else in the order given; none if ``source`` is something else.
    """
    folder = Path(source)
    if folder.is_dir():
        return sorted(folder.glob("*.tar"))
    return [Path(name) for name in _expanded(source)] if source.endswith(".tar") else []


def load_tar_shards(tars: Sequence[Path], column: str | None) -> TarShards:
    """Index every tar file; UserError for one that is missing, damaged or compressed, or for a
    sample that lacks its image or its caption. A ``column`` is of .json captions alone."""
    captions = CAPTIONS if column is None else CAPTIONS[1:]
    return TarShards([entry for tar in tars for entry in _entries(tar, captions)], column)


def _entries(tar: Path, captions: Sequence[str]) -> list[Entry]:
    samples: dict[str, dict[str, Span]] = {}
    try:
        with tarfile.open(tar, "r:") as file:  # "r:" is without compression
            for member in file:
                if member.isreg():
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    parts = samples.setdefault(f"{folder}{slash}{stem}", {})
                    if suffix.lower() in parts:
                        raise UserError(f"{tar} holds {member.name} twice: remake it")
                    parts[suffix.lower()] = Span(member.offset_data, member.size)
            end = file.offset
        if _read(tar, Span(end, tarfile.BLOCKSIZE)).strip(b"\0"):
            raise UserError(f"{tar} is damaged at byte {end}: fetch it again")
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{tar} is no readable tar file ({error}): fetch it again, or unpack it if compressed"
        ) from error
    return [_entry(tar, key, parts, captions) for key, parts in samples.items()]


def _entry(tar: Path, key: str, parts: dict[str, Span], texts: Sequence[str]) -> Entry:
    images, captions = ([p for p in kinds if p in parts] for kinds in (IMAGES, texts))
    for what, kinds, found in (("image", IMAGES, images), ("caption", texts, captions)):
        if not found:
            raise UserError(f"{key} in {tar} has no {what} ({', '.join(kinds)}): add or remove it")
    if len(images) > 1:
        raise UserError(f"{key} in {tar} has two images: {images[0]} and {images[1]}")
    return Entry(tar, key, parts[images[0]], parts[captions[0]], captions[0] == "json")


def _read(tar: Path, span: Span) -> bytes:
    try:
        with tar.open("rb") as file:
            file.seek(span.begin)
            content = file.read(span.length)
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error}") from error
    if len(content) < span.length:
        raise UserError(f"{tar} is cut off: fetch it again")
    return content


def _expanded(pattern: str) -> list[str]:
    """Each {a,b} and {000..099} in all combinations, the last running fastest."""
    pieces = []
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", piece)
        if i % 2 == 0:
            pieces.append([piece])
        elif bounds:
            low, high = bounds.groups()
            width = len(low) if low.startswith("0") else 0
            pieces.append([f"{n:0{width}}" for n in range(int(low), int(high) + 1)])
        else:
            pieces.append(piece.split(","))
    return ["".join(chosen) for chosen in itertools.product(*pieces)]
