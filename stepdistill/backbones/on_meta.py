"""A pipeline whose networks are on the meta device: shapes from config files, without weights."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ..shipped import shipped_class, trust

IN_FLOAT32 = ("vae",)  # whatever the dtype asked for, as dtype_argument loads it


def pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline that ``model_index.json`` describes, with tokenizers and scheduler as they are.

    Parts of other libraries (a safety checker) are left out.
    """
    index = json.loads((folder / "model_index.json").read_text())
    parts = {
        name: _part(folder / name, entry, dtype) if _is_component(entry) else entry
        for name, entry in index.items()
        if not name.startswith("_")
    }
    return getattr(diffusers, index["_class_name"])(**parts)


def _is_component(entry: Any) -> bool:
    """[library, class], both null for a part that is absent; not another setting of the index."""
    return isinstance(entry, list) and [type(x) for x in entry] in ([str] * 2, [type(None)] * 2)


def _part(folder: Path, entry: list[Any], dtype: torch.dtype) -> Any:
    library, name = entry
    kind: Any = None
    if (folder / f"{library}.py").exists() and trust(folder.parent):
        return shipped_class(library, name).from_pretrained(folder)
    if library in ("diffusers", "transformers"):
        kind = getattr(importlib.import_module(library), name, None)
    if kind is None or not issubclass(kind, nn.Module):
        return kind and kind.from_pretrained(folder)
    with torch.device("meta"):
        if hasattr(kind, "load_config"):
            network = kind.from_config(kind.load_config(folder))
        else:
            network = kind(kind.config_class.from_pretrained(folder))
    loaded = as_loaded(network, torch.float32 if folder.name in IN_FLOAT32 else dtype)
    return loaded.to("meta")  # buffers that a constructor makes of numpy arrays


def as_loaded(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In ``dtype`` but for the parts that the network keeps in float32; in eval mode, as loaded."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return network.eval()
