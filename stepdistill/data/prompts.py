"""Prompts: texts in a fixed order, read lazily, so that the first N of a huge file cost N lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import UserError
from .tables import Table, choose_column, open_table, text_of


class PromptCount(NamedTuple):
    """How many prompts there are, and how many empty lines were left out on the way."""

    prompts: int
    dropped: int


@dataclass(frozen=True)
class Prompts:
    """Iterated anew each time, in the order of the file, without white space around a prompt.

    Empty lines are left out; ``limit`` counts what is left.
    """

    table: Table
    column: str
    limit: int | None = None

    def __iter__(self) -> Iterator[str]:
        return (text for text in self._texts() if text)

    def count(self) -> PromptCount:
        """Goes through all of them once, and holds none."""
        prompts = total = 0
        for text in self._texts():
            total += 1
            prompts += bool(text)
        return PromptCount(prompts, total - prompts)

    def _texts(self) -> Iterator[str]:
        """With "" for what is left out."""
        kept = 0
        for number, values in self.table.read([self.column]):
            where = f"{self.table.place}, {self.table.unit} {number}"
            text = "" if values is None else text_of(values[0], self.column, where)
            kept += bool(text)
            yield text
            if kept == self.limit:
                return


def read_prompts(
    source: str,
    column: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Prompts:
    """The prompts in a .txt (one a line), .jsonl, .csv or .parquet file, or of ``datasets``.

    For ``datasets`` ``source`` is NAME, NAME:CONFIG or a folder, and ``limit`` streams a name
    instead of downloading all of it. ``column`` is by default the first of prompt, caption, text,
    and ``split`` train. UserError if there is no such source, split or column, or not one prompt in
    it.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    table = open_table(source, split, streaming=limit is not None)
    prompts = Prompts(table, choose_column(table.place, table.columns, column), limit)
    if next(iter(prompts), None) is None:
        raise UserError(f"{source} holds no prompt: all of it is empty")
    return prompts
