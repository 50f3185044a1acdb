"""A model in one ``.safetensors`` file, and the folder that says what it is.

Such a file holds weights under its authors' names, without an architecture, tokenizers or a
scheduler. A diffusers folder (or hub id) of the same architecture tells them: ``--load.config``,
by default the one that diffusers goes by, which it tells from the header's names and shapes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import families
from .errors import UserError, first_line
from .sources import built_in_worlds, folder_of

GIVE = (
    "give --load.config, a diffusers folder or a hub id of the same architecture, for its "
    "configurations, tokenizers and scheduler"
)


def described_in(place: Path, config: str | None) -> Path:
    """The folder with the configurations of ``place``: itself, unless it is a file.

    UserError for a file that is no checkpoint or that nothing describes, and for a folder that is
    given another's configurations.
    """
    if not place.is_file():
        if config is not None:
            raise UserError(
                f"load.config describes a single checkpoint file, and {place} is a folder with its "
                "own configurations: leave load.config out"
            )
        return place
    source = description_of(place, config)
    try:
        folder = folder_of(source, weights=False)
    except UserError as error:
        if config is not None:
            raise
        raise UserError(
            f"{place} is a model like {source}, whose configurations could not be had: {GIVE}"
        ) from error
    if folder.is_file():
        raise UserError(f"load.config is the file {folder}: {GIVE}")
    return folder


def description_of(file: Path, config: str | None) -> str:
    """The folder or hub id that describes a checkpoint: the one given, or diffusers' own guess."""
    tensors = header(file)  # UserError for a file of another kind, whatever its description
    return guessed(file, tensors) if config is None else config


def whole_description(file: Path, config: str | None) -> str:
    """The same for code that runs elsewhere: a folder by its whole path."""
    source = description_of(file, config)
    is_here = source in built_in_worlds() or Path(source).exists()
    return str(folder_of(source).resolve()) if is_here else source


def header(file: Path) -> dict[str, Tensor]:
    """The names, shapes and dtypes of a checkpoint, as tensors on the meta device.

    UserError for a file of another format, or a damaged one.
    """
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file} is not a .safetensors file, the one kind of checkpoint that is read"
        )
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: torch.empty(
                    found.get_shape(), dtype=_DTYPES.get(found.get_dtype()), device="meta"
                )
                for name, found in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} could not be read, it looks damaged: {error}") from error


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # others: no matter


def guessed(file: Path, tensors: dict[str, Tensor]) -> str:
    """The hub id of the model whose names and shapes these are, as diffusers tells them.

    UserError if it knows none: what it knows nothing of it takes for Stable Diffusion 1.
    """
    from diffusers.loaders import single_file_utils as known

    try:
        kind = known.infer_diffusers_model_type(tensors)
    except (KeyError, ValueError, RuntimeError, UnboundLocalError):  # a kind, but no known size
        kind = None
    if kind is None or (kind == "v1" and known.CHECKPOINT_KEY_NAMES["v1"] not in tensors):
        first = ", ".join(sorted(tensors)[:2])
        raise UserError(
            f"{file} (it holds {first}, ...) is no checkpoint that can be told by its names: "
            f"{GIVE}. Supported pipelines: {', '.join(families.known())}"
        )
    return str(known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def fetched(folder: Path, source: str, names: list[str]) -> Path:
    """``folder`` with the weights of the components ``names``, where ``source`` is a hub id.

    They come into the same folder. UserError if the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    if not names or source in built_in_worlds() or Path(source).exists():
        return folder
    wanted = [f"{name}/*.{kind}" for name in names for kind in ("json", "safetensors")]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*.fp16.*"]))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise UserError(
            f"the {', '.join(names)} of {source} could not be had: {first_line(error)}"
        ) from error
