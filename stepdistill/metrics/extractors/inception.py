"""The Inception features of clean-fid's "clean" mode (Parmar, Zhang and Zhu 2022).

Antialiased bicubic resize to 299x299 in float32, then the 2,048 pooled features of TensorFlow's
2015 network as NVIDIA's TorchScript file. Nothing here downloads: the file is large, and where
clean-fid's own download is interrupted it leaves a truncated file behind.
"""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ..features import Features, Pixels, digest

SIZE = 2048
FILE = "inception-2015-12-05.pt"
SOURCE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + FILE
VARIABLE = "STEPDISTILL_INCEPTION"
CLEAN_FID = Path("." if platform.system() == "Windows" else "/tmp")  # where clean-fid keeps FILE


def find_weights(weights: str | Path | None = None) -> Path:
    """``weights``, else what the environment names, else clean-fid's copy. UserError if missing.

    A file that was asked for and is not there is an error, not a reason to look further.
    """
    named = weights or os.environ.get(VARIABLE)
    place = Path(named) if named else CLEAN_FID / FILE
    if not place.is_file():
        missing = f"there is no file {place}" if named else "the Inception weights are not here"
        raise UserError(
            f"{missing}: fetch {FILE} ({SOURCE}) and name it with --weights, or in the environment "
            f"variable {VARIABLE}, or put it at {CLEAN_FID / FILE}; nothing is downloaded by itself"
        )
    return place


def inception_features(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Image files or x0 -> features (B, 2048), equal to clean-fid's for the same files.

    UserError if the weights are missing (see :func:`find_weights`) or damaged.
    """
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    class Network(InceptionV3W):  # type: ignore[misc]
        """clean-fid's wrapper, from a file of any name."""

        def __init__(self, file: Path) -> None:
            torch.nn.Module.__init__(self)
            with warnings.catch_warnings():  # torch calls the format deprecated; the file is given
                warnings.simplefilter("ignore", FutureWarning)
                self.base = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]
            self.base.eval()
            self.layers = self.base.layers
            self.resize_inside = False

    file = find_weights(weights)
    try:
        network = Network(file)
    except (RuntimeError, AttributeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file} is truncated, or not {FILE} ({reason}): fetch it again from {SOURCE}"
        ) from error
    resize = build_resizer("clean")

    def prepare(pixels: Pixels) -> Tensor:
        colour = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        return torch.from_numpy(np.ascontiguousarray(resize(colour).transpose(2, 0, 1)))

    @torch.no_grad()
    def features(inputs: Tensor) -> Tensor:
        output: Tensor = network(inputs.to(device))
        return output

    return Features("inception", SIZE, digest(file), "RGB", prepare, features)
