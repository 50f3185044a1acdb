"""One's own protocol: one's own prompts or classes, and reference."""

from __future__ import annotations

import torch

from ..told import Told, labels_in_proportion
from ..views import View
from .general import image_measures, text_measures
from .protocol import Protocol


def _equally_often(num_classes: int, num: int) -> Told:
    return labels_in_proportion(torch.ones(num_classes), num)


def custom(extractor: str = "inception", size: int | None = None) -> Protocol:
    """Measured on ``extractor``, at ``size`` pixels."""
    return Protocol(
        name="custom",
        about="your own prompts or classes, and your own reference",
        source="yours",
        num=None,
        kind="any",
        measures={**image_measures(View(extractor, size)), **text_measures()},
        default=("fid",),
        labels=_equally_often,
    )
