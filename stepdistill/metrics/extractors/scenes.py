"""The classifier of scenes: what the captioned digits' distance and accuracy are measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...data.captioned_digits import CaptionedDigits
from ...data.scenes import ATTRIBUTES, agree
from ...errors import UserError
from ...teachers import WORLDS
from ..features import Features, Pixels, digest, quantised
from .pixels import colour

SCENE_CLASSIFIER = WORLDS / "digits-t2i" / "classifier" / "model.safetensors"
SCENE_FEATURES = 64
SIDE = 32  # pixels


class SceneClassifier(nn.Module):
    """32x32 RGB images in [-1, 1] -> 64 features -> logits of the classes of each attribute.

    The features end in a LayerNorm without weights, as the digit classifier's do.
    """

    def __init__(self, width: int = 16, features: int = SCENE_FEATURES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(3, width),
            *_block(width, 2 * width, stride=2),
            *_block(2 * width, 2 * width),
            *_block(2 * width, 4 * width, stride=2),
            *_block(4 * width, 4 * width),
            *_block(4 * width, 6 * width, stride=2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(6 * width * 16, features),
            nn.LayerNorm(features, elementwise_affine=False),
        )
        self.head = nn.Linear(features, sum(ATTRIBUTES.values()))

    def features(self, x0: Tensor) -> Tensor:
        """(B, 64)."""
        features: Tensor = self.body(x0)
        return features

    def logits(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (B, 64) -> logits (B, classes) of each attribute."""
        parts: tuple[Tensor, ...] = self.head(features).split([*ATTRIBUTES.values()], dim=1)
        return parts

    def labels(self, features: Tensor) -> Tensor:
        """Features (B, 64) -> the likeliest class of each attribute, (B, 7)."""
        return torch.stack([logits.argmax(1) for logits in self.logits(features)], dim=1)

    def forward(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, classes) of each attribute."""
        return self.logits(self.body(x0))


def _block(inward: int, outward: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inward, outward, 3, stride=stride, padding=1)
    return [conv, nn.GroupNorm(8, outward), nn.SiLU()]


def load_scene_classifier(path: Path = SCENE_CLASSIFIER) -> SceneClassifier:
    """The bundled classifier, frozen, in eval mode and in float32 (it is stored in float16)."""
    network = SceneClassifier()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def scene_features(device: torch.device | str = "cpu") -> Features:
    """The 64 features of the bundled classifier, which sees 32x32 images and no others."""
    classifier = load_scene_classifier().to(device)

    def network(inputs: Tensor) -> Tensor:
        return classifier.features(inputs.to(device, non_blocking=True))

    return Features(
        "scenes", SCENE_FEATURES, digest(SCENE_CLASSIFIER), "RGB", _prepare, network, batch_size=500
    )


def _prepare(pixels: Pixels) -> Tensor:
    height, width, _ = pixels.shape
    if (height, width) != (SIDE, SIDE):
        raise UserError(
            f"the scene classifier sees {SIDE}x{SIDE} images, not {width}x{height}: use the "
            "inception features"
        )
    x = torch.from_numpy(np.ascontiguousarray(colour(pixels).transpose(2, 0, 1)))
    return x.float() / 127.5 - 1


@torch.no_grad()
def accuracies(classifier: SceneClassifier, data: CaptionedDigits) -> dict[str, float]:
    """On all of ``data``: the share of pictures that show all their caption says, and of each
    attribute of the scenes."""
    right, shown = torch.zeros(len(ATTRIBUTES)), torch.zeros(len(ATTRIBUTES))
    correct = 0
    for begin in range(0, len(data), 500):
        x0, cond = data.fetch([*range(begin, min(begin + 500, len(data)))])
        labels = classifier.labels(classifier.features(quantised(x0)))
        correct += int(agree(labels, cond["said"]).sum())
        right += (labels == cond["scene"]).sum(0)
        shown += (cond["scene"] >= 0).sum(0)
    shares = dict(zip(ATTRIBUTES, (right / shown).tolist(), strict=True))
    return {"caption_accuracy": correct / len(data), **shares}
