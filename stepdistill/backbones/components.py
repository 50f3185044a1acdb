"""Loading a pipeline without the components that a task has no use for.

In their place stands None, or a skeleton, which has a config and parameters without memory, where
the pipeline or an adapter reads sizes from it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

ENCODER = re.compile(r"(text|image)_encoder(_\d)?")  # what makes conditionings
NETWORKS = ("unet", "transformer", "transformer_2")


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


def load_pipeline(source: str | Path, instead: dict[str, Any], **dtype: Any) -> Any:
    """The stock pipeline of a folder or a hub id, with components ``instead`` of its own.

    ``from_pretrained`` alone (diffusers 0.42) reads a component whose parameter has a default, such
    as Wan's transformers, from the disk though it is given another: here the index names none.
    """

    def load_config(cls: Any, *arguments: Any, **options: Any) -> Any:
        config = DiffusionPipeline.load_config(*arguments, **options)
        return {k: (None, None) if k in instead else v for k, v in config.items()}

    # by this name and module it looks for the class that the folder names
    members = {"load_config": classmethod(load_config), "__module__": DiffusionPipeline.__module__}
    loader: Any = type("DiffusionPipeline", (DiffusionPipeline,), members)
    return loader.from_pretrained(source, **instead, **dtype)


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
