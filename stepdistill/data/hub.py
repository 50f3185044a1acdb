"""What the ``datasets`` library gives: a name on the hub, or a folder it has saved."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line

DEFAULT_SPLIT = "train"
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


def optional(module: str, source: object) -> Any:
    """A module of the extra ``data``; UserError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UserError(
            f'{source} needs the library {library}: pip install "stepdistill[data]"'
        ) from error


def is_saved(folder: Path) -> bool:
    """True for what ``datasets.save_to_disk`` wrote."""
    return any((folder / name).is_file() for name in SAVED)


def check_no_split(source: object, split: str | None) -> None:
    """UserError for a split asked of what has none."""
    if split is not None:
        raise UserError(f"{source} has no splits, and so no {split}: leave --split out")


def load_rows(source: str, split: str | None = None, streaming: bool = False) -> Any:
    """A ``datasets.Dataset``: ``source`` is NAME, NAME:CONFIG, or a folder; by default split train.

    With ``streaming`` a name gives an IterableDataset, which downloads what is read of it.
    UserError for a name or a split that is not there.
    """
    datasets = optional("datasets", source)
    folder = Path(source)
    try:
        if folder.is_dir() and is_saved(folder):
            found = datasets.load_from_disk(source)
            if not isinstance(found, datasets.DatasetDict):
                check_no_split(source, split)
                return found.with_format(None)
            split = split or DEFAULT_SPLIT
            if split not in found:
                raise UserError(f"{source} has no split {split}: it has {', '.join(found)}")
            return found[split].with_format(None)
        split = split or DEFAULT_SPLIT
        name, _, config = (source, "", "") if folder.exists() else source.partition(":")
        return datasets.load_dataset(name, config or None, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; all mean the same to the user
        raise UserError(
            f"{source} is no file or folder of a known kind, and datasets could not load its split "
            f"{split}: {first_line(error)}"
        ) from error
