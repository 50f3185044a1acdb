"""Where a model lies: a built-in name, a folder, one checkpoint file or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import UserError, first_sentence

WORLDS = Path(__file__).parent / "worlds"
CARD = "stepdistill.json"  # what stepdistill adds beside a folder's model_index.json
# a repository's configs and tokenizers, not its weights
LIGHT, INDICES = ["*.json", "*.txt", "*.model"], ["*.safetensors.index*.json", "*.bin.index*.json"]


def built_in_worlds() -> list[str]:
    """The names of the bundled teachers."""
    return sorted(p.parent.name for p in WORLDS.glob("*/teacher"))


def read_model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder; UserError if there is none."""
    if not (folder / "model_index.json").exists():
        if "lora" in read_card(folder):
            raise UserError(
                f"{folder} holds a LoRA, which changes its teacher's pipeline and is none itself: "
                f"the code in {folder / 'README.md'} loads and samples it, or train with --export "
                "both for a whole student too"
            )
        within = next((p.parent for p in sorted(folder.glob("*/model_index.json"))), None)
        hint = f": did you mean {within}?" if within else ""
        raise UserError(f"{folder} is not a diffusers folder, it has no model_index.json{hint}")
    return _read_object(folder / "model_index.json")


def read_card(folder: Path) -> dict[str, Any]:
    """What stepdistill wrote beside the weights; {} if the folder is not ours."""
    return _read_object(folder / CARD) if (folder / CARD).exists() else {}


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; UserError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(found).__name__}")
    return found


def folder_of(source: str, weights: bool = True) -> Path:
    """The folder of a built-in name, a path, or a hub id (downloaded or from the cache).

    Of a hub id without ``weights``, the files that hold none. UserError if there is none.
    """
    if source in built_in_worlds():
        return WORLDS / source / "teacher"
    if Path(source).exists():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"there is no folder {source}, and no built-in teacher of that name "
            f"(built in: {', '.join(built_in_worlds())})"
        )
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        if not weights:
            return Path(snapshot_download(source, allow_patterns=LIGHT, ignore_patterns=INDICES))
        return Path(DiffusionPipeline.download(source))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise UserError(
            f"{source} is neither a folder nor a model the hub could give: {first_sentence(error)}"
        ) from error


def shown_source(source: str) -> str:
    """What a card may tell strangers: of a local path its last part alone."""
    return Path(source).name if Path(source).exists() else source
