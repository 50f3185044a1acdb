"""What students are compared with during training: a reference or the teacher's own samples, and
how far apart two samples of the teacher lie. What the teacher gave is kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..evaluation.reading.measuring import Measured
from ..files import differences
from ..metrics.frechet import Moments, Statistics

FILE = "measured_teacher.safetensors"  # in the run folder
_FEATURES = "features/"


@dataclass(frozen=True)
class Baseline:
    """The reference by the key of each view that is compared; ``spread`` is the teacher's mean
    distance of two samples that are told the same."""

    targets: Mapping[str, Measured]
    spread: float


def measured(features: Tensor, path: str) -> Measured:
    """Features (N, D) as one side of a comparison; ``path`` says in words whose they are."""
    moments = Moments()
    moments.add(features)
    record = {"path": path, "num_samples": len(features)}
    return Measured(Statistics.of(moments), record, features)


def teachers_own(features: Mapping[str, Tensor], spread: float) -> Baseline:
    """The teacher's own samples as the reference, by their features (N, D)."""
    found = {key: measured(own, "the teacher's samples") for key, own in features.items()}
    return Baseline(found, spread)


def save_baseline(
    features: Mapping[str, Tensor], spread: float, path: Path, facts: Mapping[str, Any]
) -> None:
    """Write what the teacher gave and what it depends on, aside and renamed."""
    tensors = {"spread": torch.tensor(spread, dtype=torch.float64)}
    tensors |= {_FEATURES + key: own for key, own in features.items()}
    aside = path.with_name(path.name + ".partial")
    save_file(tensors, aside, {"facts": json.dumps(facts)})
    aside.replace(path)


def load_baseline(path: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Tensor], float]:
    """(features, spread) that :func:`save_baseline` wrote. UserError if they depend on other
    ``facts``."""
    with safe_open(path, "pt") as file:
        then = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if then != facts:
        raise UserError(
            f"students of {path.parent} were measured otherwise ({differences(then, facts)}): give "
            "the same options, or another --output"
        )
    cut = len(_FEATURES)
    features = {name[cut:]: own for name, own in tensors.items() if name.startswith(_FEATURES)}
    return features, float(tensors["spread"])
