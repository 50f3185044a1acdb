"""Files of prompts: what ``data.prompts`` reads, and the pickled lists of older evaluations."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ...data.prompts import read_prompts
from ...errors import UserError

# what a damaged pickle ends in
UNREADABLE = (
    *(OSError, EOFError, ValueError, AttributeError, IndexError, KeyError, TypeError),
    pickle.UnpicklingError,
)


class _NamesNothing(pickle.Unpickler):
    """Lists, texts and numbers need no class: a file that names one is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and would run code")


def prompts_in(file: str) -> tuple[str, ...]:
    """All prompts of a file (.txt, .jsonl, .csv, .parquet, a .pkl with a list) or a data set.

    UserError for a file that cannot be read, or holds something else.
    """
    if Path(file).suffix != ".pkl":
        return tuple(read_prompts(file))
    try:
        with Path(file).open("rb") as opened:
            found = _NamesNothing(opened).load()
    except UNREADABLE as error:
        raise UserError(
            f"{file} is no pickled list of prompts ({error}): write one prompt a line, as .txt"
        ) from error
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise UserError(f"{file} must hold a list of texts: write one prompt a line, as .txt")
    return tuple(found)
