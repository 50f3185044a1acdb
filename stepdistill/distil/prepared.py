"""From options to how students are measured: everything opened once, and checked, in advance."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import UserError
from ..evaluation.measures.image_metrics import METRICS
from ..evaluation.measures.weights import weights_of
from ..evaluation.references.reference import Reference, load_reference
from ..evaluation.running.choices import compared
from ..metrics.features import Features
from ..metrics.frechet import few_samples
from .measuring import Measuring
from .options import EvalOptions
from .seeing import Seeing
from .told import Order, Told
from .wanted import DEFAULT, Networks, Wanted


def prepare_measuring(
    own: EvalOptions,
    told: Told,
    num: int,
    block: int,
    guidance_scale: float,
    accelerator: Accelerator,
) -> Measuring:
    """``block`` samples are drawn at a time.

    UserError for too few samples, metrics or weights that are not there, a reference that is of
    another extractor, and pictures that an extractor does not see.
    """
    if num < 4:
        raise UserError(f"evaluate_samples must be at least 4 to be measured, got {num}")
    name, weights = own.features or default_features(told), weights_of(own.weights)
    by_teacher = not own.reference
    wanted = Wanted.of(own.metrics or DEFAULT, name, weights, by_teacher, told)
    networks = _opened(wanted, accelerator)
    channels, *_, height, width = told.teacher.family.pixel_shape(told.teacher)
    for view in networks.views.values():
        view(torch.zeros(1, channels, height, width))
    references = [load_reference(Path(one)) for one in own.reference]
    if references and not own.metrics and not _hold_features(references, networks, wanted):
        wanted = replace(wanted, measures=wanted.measures[:1])  # fid alone
    targets = compared(wanted.measures, references, networks.views) if references else {}
    wanted.check(num, networks, targets)
    facts = {**_facts(wanted, networks, told, references), "samples": num}
    facts["guidance_scale"] = guidance_scale
    if accelerator.is_main_process:
        _warn(num, wanted, networks.views)
    seeing = Seeing(told, Order.of(num, told.count), block, accelerator)
    return Measuring(wanted, seeing, guidance_scale, targets, facts)


def default_features(told: Told) -> str:
    """The built-in digits' classifier for pictures such as theirs, Inception for any other."""
    shape = told.teacher.family.pixel_shape(told.teacher)
    return "digits" if shape == (1, 8, 8) else "inception"


def _opened(wanted: Wanted, accelerator: Accelerator) -> Networks:
    try:
        return wanted.open(accelerator.device)
    except UserError as error:
        raise UserError(
            f"students are to be measured on {wanted.base.extractor} features, by "
            f"{', '.join(measure.name for measure in wanted.measures)} (give --eval.features, "
            "--eval.metrics and --eval.weights, or evaluate_every=0 for no measurement): "
            f"{error}"
        ) from error


def _facts(
    wanted: Wanted, networks: Networks, told: Told, references: Sequence[Reference]
) -> dict[str, Any]:
    """What the numbers depend on beside how many samples there are, in JSON form."""
    texts = None if told.texts is None else sha256(repr(told.texts).encode()).hexdigest()
    return {
        "metrics": [measure.name for measure in wanted.measures],
        "features": {key: [view.sha256, view.resize] for key, view in networks.views.items()},
        "scorers": {key: scorer.sha256 for key, scorer in networks.scorers.items()},
        "told": told.source,
        "prompts": texts,
        "reference": [
            {key: value for key, value in one.record().items() if key != "path"}
            for one in references
        ],
    }


def _hold_features(references: Sequence[Reference], networks: Networks, wanted: Wanted) -> bool:
    """Whether the kernel distance can be taken too. UserError for one of another extractor."""
    base = networks.views[wanted.base.key]
    return any(reference.features(base) is not None for reference in references)


def _warn(num: int, wanted: Wanted, views: Mapping[str, Features]) -> None:
    """Of Gaussians of few samples."""
    gaussian = [m.seen.key for m in wanted.measures if m.compares and METRICS[m.name].gaussian]
    for key in dict.fromkeys(gaussian):
        if short := few_samples(num, views[key].size):
            print(f"evaluate_samples={num} give a trend, and no more: {short}", file=sys.stderr)
