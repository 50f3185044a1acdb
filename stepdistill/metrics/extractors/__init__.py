"""Networks that a distance is measured on, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import UserError
from ..features import Features
from .clip_vision import CLIP_336, clip_336_features
from .digits import digit_features
from .dinov2 import DINOV2, dinov2_features
from .inception import inception_features
from .inception_network import INCEPTION, STATE_DICT
from .inception_tf import inception_tf_features
from .scenes import scene_features

Weights = str | Path | None
Device = torch.device | str


class Extractor(NamedTuple):
    """How to make a Features of weights (None: where they are found) on a device, what it is in a
    line, and the SHA-256 of the weights that published numbers are of (none: nothing to compare).
    """

    make: Callable[[Weights, Device], Features]
    about: str
    published: tuple[str, ...] = ()


def bundled(name: str, make: Callable[[Device], Features]) -> Callable[[Weights, Device], Features]:
    """An extractor that comes with the package: UserError for weights."""

    def features(weights: Weights, device: Device) -> Features:
        if weights is not None:
            raise UserError(f"the {name} features are bundled: leave --weights {weights} out")
        return make(device)

    return features


def _known(*sha256: str | None) -> tuple[str, ...]:
    return tuple(s for s in sha256 if s is not None)


EXTRACTORS: dict[str, Extractor] = {
    "digits": Extractor(bundled("digits", digit_features), "the built-in 8x8 digits' classifier"),
    "scenes": Extractor(
        bundled("scenes", scene_features), "the built-in captioned 32x32 scenes' classifier"
    ),
    "inception": Extractor(
        inception_features,
        "Inception, clean-fid's antialiased resize (text-to-image FID)",
        _known(INCEPTION.sha256, STATE_DICT.sha256),
    ),
    "inception-tf": Extractor(
        inception_tf_features,
        "Inception, TensorFlow's resize (StyleGAN, EDM and ADM FID)",
        _known(INCEPTION.sha256, STATE_DICT.sha256),
    ),
    "dinov2": Extractor(dinov2_features, "DINOv2 ViT-L/14 (FD-DINOv2)", _known(DINOV2.sha256)),
    "clip-336": Extractor(
        clip_336_features, "CLIP ViT-L/14@336's embeddings (CMMD)", _known(CLIP_336.sha256)
    ),
}


def extractor(name: str, weights: Weights = None, device: Device = "cpu") -> Features:
    """The features of that name. UserError for another name, with the nearest and all there are."""
    if name not in EXTRACTORS:
        near = difflib.get_close_matches(name, EXTRACTORS, 1, 0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there are no {name} features{hint}: use one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name].make(weights, device)


def unpublished(features: Features) -> str | None:
    """A sentence for a record's notes, where the weights are not those of published numbers."""
    published = EXTRACTORS[features.name].published
    if not published or features.sha256 in published:
        return None
    return (
        f"the weights of {features.name} are not the published file (sha256 "
        f"{features.sha256[:12]}...): no published number can be compared with this one"
    )
