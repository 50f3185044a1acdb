"""One's own protocol: one's own prompts or classes, and reference."""

from __future__ import annotations

from ..measures.views import View
from ..models.told import NOTHING, Told, labels_equally_often
from .general import image_measures, text_measures
from .protocol import Protocol


def _labels(num_classes: int | None, num: int) -> Told:
    return NOTHING if num_classes is None else labels_equally_often(num_classes, num)


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
        labels=_labels,
    )
