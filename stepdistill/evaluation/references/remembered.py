"""What images were measured to be, in a work folder: going on does not read them again."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from ...metrics.features import Features
from ..reading.archives import Pictures, content_sha256
from ..reading.measuring import Measured, Reading, Want
from .stored import Stored, save_reference


def place(folder: Path, pictures: Pictures, want: Want, how: Reading) -> Path:
    """The file for those images, through that extractor: by the hash of all that decides it."""
    features = want.features
    of = (content_sha256(pictures), features.name, features.sha256, features.resize)
    named = sha256(json.dumps([*of, want.keep, how.skip_corrupt]).encode()).hexdigest()
    return folder / f"reference-{named[:16]}.safetensors"


def remember(file: Path, measured: Measured, features: Features) -> None:
    """Write it whole. StepDistillError if there is no place for it."""
    said = {"record": measured.record, "notes": measured.notes}
    save_reference(file, measured, features, said)


def remembered(file: Path, features: Features) -> Measured:
    """As it was measured. UserError for a file that is damaged."""
    stored = Stored.open(file)
    said = json.loads(stored.told["source"])
    kept = stored.features(features)
    return Measured(stored.statistics(features), said["record"], kept, tuple(said["notes"]))
