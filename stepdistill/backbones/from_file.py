"""The networks that one checkpoint file holds, converted by diffusers to its own names.

A file holds the network that denoises, and maybe an autoencoder and text encoders. Whatever else a
pipeline needs comes from the folder that describes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..single_file import GIVE, header
from ..sources import read_model_index
from .on_meta import as_loaded

NETWORKS = ("unet", "transformer", "transformer_2")
LEFT_OUT = "safety_checker"  # no checkpoint holds one


def networks(
    file: Path, folder: Path, dtype: torch.dtype, without: Collection[str]
) -> dict[str, nn.Module]:
    """The networks in ``file`` by component, but for ``without``, as ``folder`` describes them.

    In ``dtype``, the autoencoder in float32. UserError if they are not of that architecture.
    """
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    names = [name for name in held(file, folder) if name not in without]
    checkpoint = load_single_file_checkpoint(str(file)) if names else {}
    kinds = dict(classes(folder))
    return {
        name: _converted(
            kinds[name], name, checkpoint, folder, torch.float32 if name == "vae" else dtype, file
        )
        for name in names
    }


def lacking(folder: Path, present: Collection[str]) -> list[str]:
    """The networks that are neither ``present`` nor have weights in ``folder``."""
    kinds = ("*.safetensors", "*.bin")
    return [
        name
        for name, _ in classes(folder)
        if name not in present and not any(any((folder / name).glob(kind)) for kind in kinds)
    ]


def held(file: Path, folder: Path) -> list[str]:
    """The components of ``folder``'s pipeline that ``file`` holds, told by its header.

    UserError for a pipeline of two experts, which lie in two files, or one whose checkpoints
    diffusers cannot convert.
    """
    tensors, kinds = header(file), dict(classes(folder))
    own = [name for name in NETWORKS if name in kinds]
    if len(own) != 1:
        raise UserError(
            f"{folder} describes a pipeline with {len(own)} networks ({', '.join(own)}), and "
            f"{file} is one file: give a diffusers folder as the teacher"
        )
    if not hasattr(kinds[own[0]], "from_single_file"):
        raise UserError(
            f"diffusers converts no single file to a {kinds[own[0]].__name__}: give a diffusers "
            "folder as the teacher"
        )
    return [name for name, kind in kinds.items() if name in own or _holds(tensors, kind)]


def classes(folder: Path) -> Iterator[tuple[str, type[nn.Module]]]:
    """(component, class) of the networks that ``folder`` names, without a safety checker."""
    for name, entry in read_model_index(folder).items():
        if not (isinstance(entry, list) and entry[0] in ("diffusers", "transformers")):
            continue
        kind: Any = getattr(importlib.import_module(entry[0]), entry[1], None)
        if name != LEFT_OUT and isinstance(kind, type) and issubclass(kind, nn.Module):
            yield name, kind


def _holds(tensors: Mapping[str, Tensor], kind: Any) -> bool:
    """Whether a checkpoint has an encoder or an autoencoder of class ``kind``."""
    from diffusers.loaders import single_file_utils as known

    if kind.__name__ == "T5EncoderModel":
        return bool(known.is_t5_in_single_file(tensors))
    if hasattr(kind, "from_single_file"):
        return any(name.startswith(tuple(known.LDM_VAE_KEYS)) for name in tensors)
    return bool(known.is_clip_model_in_single_file(kind, tensors))


def _converted(
    kind: Any, name: str, checkpoint: Any, folder: Path, dtype: torch.dtype, file: Path
) -> nn.Module:
    """One of them. Where some of its layers stay in float32, it is read so and then cast."""
    from diffusers import pipelines
    from diffusers.loaders.single_file import load_single_file_sub_model

    keeps = hasattr(kind, "from_single_file") and bool(kind._keep_in_fp32_modules)
    plain = keeps or dtype == torch.float32
    try:
        network: nn.Module = load_single_file_sub_model(
            library_name=kind.__module__.split(".")[0],
            class_name=kind.__name__,
            name=name,
            checkpoint=dict(checkpoint),  # some conversions empty it
            pipelines=pipelines,
            is_pipeline_module=False,
            cached_model_config_path=str(folder),
            torch_dtype=None if plain else dtype,  # None: float32
        )
    except NotImplementedError as error:  # of a tensor without memory, which is left so
        raise _misfit(file, name, folder, "some of its tensors are missing") from error
    except Exception as error:  # whatever a conversion trips over
        raise _misfit(file, name, folder, first_line(error)) from error
    tensors = (*network.named_parameters(), *network.named_buffers())
    missing = [key for key, tensor in tensors if tensor.is_meta]
    if missing:
        raise _misfit(file, name, folder, f"{len(missing)} tensors are missing, as {missing[0]}")
    return as_loaded(network, dtype) if keeps else network


def _misfit(file: Path, name: str, folder: Path, why: str) -> UserError:
    return UserError(f"the {name} in {file} is not as {folder} describes it ({why}): {GIVE}")
