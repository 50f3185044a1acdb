"""The classifier of the built-in digits: what their distance and accuracy are measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError
from ...teachers import WORLDS
from ..features import Features, Pixels, digest

CLASSIFIER = WORLDS / "digits" / "classifier" / "model.safetensors"
DIGIT_FEATURES = 32


class DigitClassifier(nn.Module):
    """8x8 grey images in [-1, 1] -> 32 features -> 10 logits.

    The features end in a LayerNorm without weights: without it, their scale runs off where the
    classifier is sure, and two samplings of one model differ by a factor of 1.7.
    """

    def __init__(self, width: int = 32, features: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(1, width),
            *_block(width, width),
            *_block(width, 2 * width, stride=2),
            *_block(2 * width, 2 * width),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(2 * width * 16, features),
            nn.LayerNorm(features, elementwise_affine=False),
        )
        self.head = nn.Linear(features, classes)

    def features(self, x0: Tensor) -> Tensor:
        """(B, 32)."""
        features: Tensor = self.body(x0)
        return features

    def forward(self, x0: Tensor) -> Tensor:
        """Logits (B, 10)."""
        logits: Tensor = self.head(self.body(x0))
        return logits


def _block(inward: int, outward: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inward, outward, 3, stride=stride, padding=1)
    return [conv, nn.GroupNorm(8, outward), nn.SiLU()]


def load_digit_classifier(path: Path = CLASSIFIER) -> DigitClassifier:
    """The bundled classifier, frozen and in eval mode."""
    network = DigitClassifier()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def digit_features(device: torch.device | str = "cpu") -> Features:
    """The 32 features of the bundled classifier, which sees 8x8 grey images and no others."""
    classifier = load_digit_classifier().to(device)

    def network(inputs: Tensor) -> Tensor:
        return classifier.features(inputs.to(device, non_blocking=True))

    return Features(
        "digits", DIGIT_FEATURES, digest(CLASSIFIER), "L", _prepare, network, batch_size=500
    )


def _prepare(pixels: Pixels) -> Tensor:
    if pixels.shape != (8, 8, 1):
        height, width, channels = pixels.shape
        raise UserError(
            f"the digit classifier sees 8x8 grey images, not {width}x{height} with {channels} "
            "channels: use the inception features"
        )
    return torch.from_numpy(pixels[None, :, :, 0].astype(np.float32)) / 127.5 - 1
