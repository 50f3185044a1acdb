"""Networks of transformers, from a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...errors import UserError, first_line
from ..features import digest

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order that transformers looks


def load_pretrained(kind: Any, folder: str, device: torch.device | str) -> Any:
    """A ``kind`` (a class of transformers) in float32, frozen. UserError for a damaged folder, or
    one of another network, of which transformers would make up the missing weights at random."""
    try:
        with _quiet():
            network, found = kind.from_pretrained(
                folder, output_loading_info=True, local_files_only=True
            )
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        EOFError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(f"{folder} holds no {kind.__name__}: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder} holds no {kind.__name__}: it has no {missing[0]}")
    return network.float().eval().requires_grad_(False).to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers tells of weights that are not used, such as the text half of CLIP."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def weights_digest(folder: str) -> str:
    """SHA-256 of the folder's weights. UserError if they are not one file."""
    for name in WEIGHTS:
        if (file := Path(folder) / name).is_file():
            return digest(file)
    raise UserError(f"{folder} has neither {' nor '.join(WEIGHTS)}")
