"""The features of an evaluation, written for someone's own use (--keep_features)."""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import UserError
from ...files import save_whole
from .evaluation import Evaluation


def folder_for_features(folder: Path) -> Path:
    """``folder``, made now. UserError where it cannot be, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write features to {folder} ({error}): name a folder you may write to"
        ) from error
    return folder


def keep_features(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the features of each view's first repeat (N, D), and what they were made by.

    StepDistillError if there is no place for them.
    """
    evidence, files = evaluation.repeat(0, {}), []
    views = {m.view.key: m.view for m in evaluation.measures if m.view is not None}
    for key, view in views.items():
        features = evaluation.order.views[key]
        file = folder / f"{key}.safetensors"
        told = {"sha256": features.sha256}
        save_whole({"features": torch.cat(list(evidence.blocks(view)))}, file, told)
        files.append(file)
    return files
