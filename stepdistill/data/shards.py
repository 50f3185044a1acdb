"""The form of precomputed samples: sharded safetensors with an index.

FOLDER/00000.safetensors ...  tensors by name, a row a sample, all rows of a shard of one shape
FOLDER/beside.safetensors     tensors that are of no sample, such as the null conditioning
FOLDER/index.json             what made them, and each shard's samples, shapes and bytes

``x0`` is the sample, ``cond.NAME`` its conditioning, other names are extras (``z`` of a noise-image
pair). Conditioning has one shape in the whole folder. A folder that has its index is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import UserError

INDEX, BESIDE, LOCK, PARTIAL = "index.json", "beside.safetensors", ".lock", ".partial"
CONDITION = "cond."
# one key: safetensors writes several in an order that changes from process to process
HEADER = "stepdistill"
SHARD = re.compile(r"\d{5,}\.safetensors")
OURS = re.compile(rf"({SHARD.pattern}|beside\.safetensors|index\.json)(\.partial)?|\.lock")


@dataclass(frozen=True)
class Shard:
    """A shard as the index lists it; ``shapes`` are of one sample."""

    file: str
    samples: int
    bytes: int
    shapes: dict[str, list[int]]
    dtypes: dict[str, str]

    @property
    def kind(self) -> dict[str, Any]:
        """What all shards of a folder share."""
        fixed = {name: shape for name, shape in self.shapes.items() if name.startswith(CONDITION)}
        return {"dtypes": self.dtypes, "shapes": fixed}


def read_header(path: Path) -> dict[str, Any]:
    """What a shard says beside its tensors: inputs, left_out, made_from, texts."""
    with opened(path) as file:
        try:
            header: dict[str, Any] = json.loads((file.metadata() or {})[HEADER])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is no shard of precomputed samples: remove it") from error
        return header


def describe_shard(path: Path) -> Shard:
    """The index's record of a shard, from its header."""
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        shapes = {name: list(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
    samples = next(iter(shapes.values()))[0]
    rest = {name: shape[1:] for name, shape in shapes.items()}
    return Shard(path.name, samples, path.stat().st_size, rest, dtypes)


def opened(path: Path) -> Any:
    """A shard, mapped into memory; UserError if it is damaged."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it and the later shards and {INDEX}, and "
            "precompute again"
        ) from error


def is_precomputed(folder: Path) -> bool:
    """Whether ``folder`` holds precomputed samples, be they complete or not."""
    files = folder.iterdir() if folder.is_dir() else ()
    return any(SHARD.fullmatch(file.name.removesuffix(PARTIAL)) for file in files)


def read_index(folder: Path) -> dict[str, Any]:
    """index.json; UserError if the folder has none, or a damaged one."""
    path = folder / INDEX
    if not folder.is_dir():
        raise UserError(f"there is no folder of precomputed samples at {folder}")
    if not path.is_file():
        if any(OURS.fullmatch(found.name) for found in folder.iterdir()):
            raise UserError(f"{folder} is not complete: run its precomputation again to go on")
        raise UserError(f"{folder} holds no precomputed samples, it has no {INDEX}")
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        if not {"inputs", "left_out", "made_from", "shards"} <= index.keys():
            raise ValueError("it lacks some of its keys")
        _ = [Shard(**shard) for shard in index["shards"]]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it and run the precomputation again, which keeps "
            "the shards"
        ) from error
    return index


def check_shards(folder: Path, index: Mapping[str, Any]) -> None:
    """UserError unless every file of the index is there in full length."""
    sizes = {shard["file"]: shard["bytes"] for shard in index["shards"]}
    if index.get("beside"):
        sizes[BESIDE] = index["beside"]
    for file, expected in sizes.items():
        path = folder / file
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            what = "is missing" if size is None else f"has {size:,} of {expected:,} bytes"
            raise UserError(
                f"{path} {what}: copy it again, or remove it, the later shards and {INDEX}, and "
                "precompute again"
            )
