"""The Inception features of the original code (Heusel et al. 2017), as StyleGAN, EDM, ADM and
torch-fidelity have them: resized as TensorFlow 1 did, bilinear without antialiasing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..features import Features, Pixels, digest
from .inception import checked_weights
from .inception_network import SIDE, SIZE, load_inception
from .pixels import colour, tensorflow_bilinear


def inception_tf_features(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Features:
    """8-bit images of any size -> features (B, 2048), from the same files as ``inception``."""
    file = checked_weights(weights)
    network = load_inception(file, device)

    return Features(
        "inception-tf",
        SIZE,
        digest(file),
        "RGB",
        _prepare,
        network.features,
        resize="to 299x299, TensorFlow 1's bilinear, no antialiasing (StyleGAN, EDM, ADM)",
        logits=network.logits,
    )


def _prepare(pixels: Pixels) -> Tensor:
    return tensorflow_bilinear(colour(pixels), SIDE)
