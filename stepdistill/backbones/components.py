"""Loading a pipeline without the components that a task has no use for.

In their place stands None, or a skeleton, which has a config and parameters without memory, where
the pipeline or an adapter reads sizes from it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..errors import UserError
from ..shipped import trust
from ..single_file import GIVE, described_in, description_of, fetched
from . import from_file, on_meta
from .family import dtype_argument
from .from_file import NETWORKS

if TYPE_CHECKING:
    from ..teachers import LoadOptions

ENCODER = re.compile(r"(text|image)_encoder(_\d)?")  # what makes conditionings


def read_pipeline(kind: Any, folder: Path, options: LoadOptions) -> Any:
    """The pipeline in ``folder`` (or one file), of class ``kind``; on meta without weights."""
    if not options.weights:
        return on_meta.pipeline(described_in(folder, options.config), options.torch_dtype)
    if folder.is_file():
        return load_pipeline(folder, {}, options)
    return kind.from_pretrained(folder, **dtype_argument(options.torch_dtype), **trust(folder))


def without_encoders(folder: Path, decodes: bool) -> dict[str, Any]:
    """For a teacher that is told by stored conditionings; ``decodes`` keeps the autoencoder."""
    index = _index(folder)
    found: dict[str, Any] = {name: None for name in index if ENCODER.fullmatch(name)}
    return found if decodes else {**found, "vae": _skeleton(folder, index, "vae")}


def without_networks(folder: Path) -> dict[str, Any]:
    """For a teacher that encodes and is not sampled."""
    index = _index(folder)
    present = [name for name in NETWORKS if index.get(name, [None])[0] is not None]
    return {name: _skeleton(folder, index, name) for name in present}


def load_pipeline(source: str | Path, instead: dict[str, Any], options: LoadOptions) -> Any:
    """The stock pipeline of a folder, a file or a hub id, with components ``instead`` of its own.

    ``from_pretrained`` alone (diffusers 0.42) reads a component whose parameter has a default, such
    as Wan's transformers, from the disk though it is given another: here the index names none.
    """

    if Path(source).is_file():
        source, instead = _of_file(Path(source), instead, options)

    def load_config(cls: Any, *arguments: Any, **more: Any) -> Any:
        config = DiffusionPipeline.load_config(*arguments, **more)
        return {k: (None, None) if k in instead else v for k, v in config.items()}

    # by this name and module it looks for the class that the folder names
    members = {"load_config": classmethod(load_config), "__module__": DiffusionPipeline.__module__}
    loader: Any = type("DiffusionPipeline", (DiffusionPipeline,), members)
    dtype = dtype_argument(options.torch_dtype)
    return loader.from_pretrained(source, **instead, **dtype, **trust(source))


def _of_file(
    file: Path, instead: dict[str, Any], options: LoadOptions
) -> tuple[Path, dict[str, Any]]:
    """The folder that describes ``file``, and ``instead`` with the networks in it.

    UserError if neither of them holds a network that is needed.
    """
    folder = described_in(file, options.config)
    found = from_file.networks(file, folder, options.torch_dtype, without=instead)
    present: dict[str, Any] = {**found, **instead}
    if from_file.LEFT_OUT in _index(folder):
        present.setdefault(from_file.LEFT_OUT, None)
    names = from_file.lacking(folder, present)
    folder = fetched(folder, description_of(file, options.config), names)
    if still := from_file.lacking(folder, present):
        raise UserError(
            f"{file} holds no {', '.join(still)}, and {folder} has no weights of "
            f"{'it' if len(still) == 1 else 'them'}: {GIVE}, and for these weights"
        )
    return folder, present


def is_loaded(part: Any) -> bool:
    """Whether a component is there, with its weights."""
    if isinstance(part, nn.Module):
        return not any(parameter.is_meta for parameter in part.parameters())
    return part is not None


def _index(folder: Path) -> dict[str, Any]:
    """The components of a pipeline's folder: {name: [library, class]}."""
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    return index


def _skeleton(folder: Path, index: dict[str, Any], name: str) -> Any:
    kind = getattr(diffusers, index[name][1])
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, subfolder=name))
