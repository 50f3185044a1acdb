"""Rows of named columns, read lazily: .txt, .jsonl, .csv, .parquet, and what ``datasets`` loads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from .hub import check_no_split, load_rows, optional

TEXT_COLUMNS = ("prompt", "caption", "text")  # the first of these, where no column is named

# the number of a line or row, from 1, and the asked values; None for an empty line
Row = tuple[int, tuple[Any, ...] | None]


@dataclass(frozen=True)
class Table:
    """``read`` starts at the first row each time it is called; ``unit`` is what a number counts."""

    place: str
    columns: tuple[str, ...]
    unit: str
    read: Callable[[Sequence[str]], Iterator[Row]]


def choose_column(
    place: str, columns: Sequence[str], asked: str | None, defaults: Sequence[str] = TEXT_COLUMNS
) -> str:
    """The column ``asked`` for, else the first of ``defaults``; UserError lists them all."""
    there = f"{place} has the columns {', '.join(columns)}"
    if asked is not None and asked not in columns:
        raise UserError(f"{there}, and no {asked}: name one of them")
    found = [asked] if asked else [name for name in defaults if name in columns]
    if not found:
        raise UserError(f"{there}, and none of {', '.join(defaults)}: name one by --column")
    return found[0]


def text_of(value: object, column: str, where: str) -> str:
    """``value`` without white space around it, "" for null; UserError if it is no text."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {column} must be text, and is a {type(value).__name__}")
    return (value or "").strip()


def open_table(source: str, split: str | None = None, streaming: bool = False) -> Table:
    """The table in a file, by its suffix, or of a ``datasets`` name or folder.

    UserError for a file that is missing, of another kind, or without columns or splits.
    """
    path, suffix = Path(source), Path(source).suffix.lower()
    if suffix not in READERS:
        if path.is_file():
            raise UserError(f"{path} is none of {', '.join(READERS)}: convert it to one of them")
        return _dataset(source, split, streaming)
    if not path.is_file():
        raise UserError(f"there is no file {path}: check its path")
    check_no_split(path, split)
    return READERS[suffix](path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """One line after another, numbered, with its end; UserError names the line that is no UTF-8."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number} is not UTF-8 text: save the file as UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _text_file(path: Path) -> Table:
    """One prompt a line."""

    def read(_: Sequence[str]) -> Iterator[Row]:
        return ((number, (line,)) for number, line in _lines(path))

    return Table(str(path), TEXT_COLUMNS[:1], "line", read)


def _json_lines(path: Path) -> Table:
    """One object a line; the columns are the keys of the first."""

    def objects() -> Iterator[tuple[int, dict[str, Any] | None]]:
        for number, line in _lines(path):
            if not line.strip():
                yield number, None
                continue
            try:
                found = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not valid JSON: {error}") from error
            if not isinstance(found, dict):
                raise UserError(f"{path}, line {number} must hold a JSON object such as {{...}}")
            yield number, found

    def read(columns: Sequence[str]) -> Iterator[Row]:
        for number, found in objects():
            missing = [name for name in columns if found is not None and name not in found]
            if missing:
                raise UserError(f"{path}, line {number} has no {missing[0]}, as the first has")
            yield number, None if found is None else tuple(found[name] for name in columns)

    first = next((found for _, found in objects() if found), None)
    if first is None:
        raise UserError(f"{path} is empty")
    return Table(str(path), tuple(first), "line", read)


def _comma_separated(path: Path) -> Table:
    """The first line names the columns; quoted values may go over several lines."""

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((line for _, line in _lines(path)), strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not valid CSV: {error}") from error

    def read(columns: Sequence[str]) -> Iterator[Row]:
        _, header = next(found := rows())
        places = [header.index(name) for name in columns]
        for number, row in found:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {number} has {len(row)} values for {len(header)} columns: put "
                    'values that hold a comma into "quotes"'
                )
            yield number, tuple(row[i] for i in places) if row else None

    _, header = next(rows(), (0, []))
    if not header:
        raise UserError(f"{path} does not begin with a line that names its columns")
    return Table(str(path), tuple(header), "line", read)


def _parquet(path: Path) -> Table:
    """Batch after batch of the asked columns alone."""
    parquet = optional("pyarrow.parquet", path)

    def opened() -> Any:
        try:
            return parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no readable parquet file: {first_line(error)}") from error

    def read(columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        try:
            with opened() as file:
                for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                    for values in zip(*(batch[c].to_pylist() for c in columns), strict=True):
                        yield (number := number + 1), values
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged after row {number}: {first_line(error)}") from error

    with opened() as file:
        return Table(str(path), tuple(file.schema_arrow.names), "row", read)


def _dataset(source: str, split: str | None, streaming: bool) -> Table:
    """The rows of a ``datasets`` name or folder."""
    rows = load_rows(source, split, streaming)
    columns = rows.column_names or tuple(next(iter(rows), {}))

    def read(asked: Sequence[str]) -> Iterator[Row]:
        number = 0
        try:
            for row in rows.select_columns(list(asked)):
                number += 1
                yield number, tuple(row[name] for name in asked)
        except Exception as error:  # of the network, of the files: the library raises many kinds
            raise UserError(
                f"{source} could not be read after row {number}: {first_line(error)}"
            ) from error

    return Table(source, tuple(columns), "row", read)


READERS: dict[str, Callable[[Path], Table]] = {
    ".txt": _text_file,
    ".jsonl": _json_lines,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}
