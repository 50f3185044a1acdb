"""What images were measured to be, in a work folder: going on does not read them again."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from ...errors import UserError
from ...files import tensor_sha256
from ...metrics.features import Features
from ..reading.measuring import Measured, Reading, Want
from .stored import Stored, save_reference


def place(folder: Path, content: str, want: Want, how: Reading) -> Path:
    """The file for images of the hash ``content``, seen through that extractor."""
    features = want.features
    of = (content, features.name, features.sha256, features.resize)
    named = sha256(json.dumps([*of, want.keep, how.skip_corrupt]).encode()).hexdigest()
    return folder / f"reference-{named[:16]}.safetensors"


def remember(file: Path, measured: Measured, features: Features) -> None:
    """Write it whole. StepDistillError if there is no place for it."""
    said = {"record": measured.record, "notes": measured.notes, "sha256": _hashes(measured)}
    save_reference(file, measured, features, said)


def remembered(file: Path, features: Features) -> Measured:
    """As it was measured. UserError for a file that is not as it was written."""
    damaged = f"{file} is damaged: remove it and give the same command again"
    try:
        stored = Stored.open(file)
        said = json.loads(stored.told["source"])
        kept = stored.features(features)
    except (UserError, ValueError, KeyError) as error:
        raise UserError(damaged) from error
    found = Measured(stored.statistics(features), said["record"], kept, tuple(said["notes"]))
    if _hashes(found) != said["sha256"]:
        raise UserError(damaged)
    return found


def _hashes(measured: Measured) -> dict[str, str]:
    tensors = {"mean": measured.statistics.mean, "covariance": measured.statistics.covariance}
    if measured.features is not None:
        tensors["features"] = measured.features
    return {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
