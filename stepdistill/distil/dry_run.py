"""A training run cut to one iteration, to see whether it can be done at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Settings
from ..fit import FitConfig
from ..methods import PathOptions
from .options import DistilOptions, EvalOptions


def one_iteration(settings: Settings, method: type[Any]) -> Settings:
    """The same run, cut to one iteration of one micro-batch that updates every role."""
    options, config = settings.get(DistilOptions), settings.get(FitConfig)
    output = Path(options.output) / "dry_run"
    if (output / "config.yaml").exists():  # an earlier dry run
        shutil.rmtree(output)
    micro = config.batch_size // config.accumulate
    short: dict[str, Any] = {
        **{"max_steps": 1, "batch_size": micro, "accumulate": 1, "lr_warmup": 0, "lr_decay": 0},
        **{"log_every": 1, "save_every": 1, "sample_every": 1, "evaluate_every": 0},
        **{"stop_after": 0, "best_metric": None},  # nothing is measured
    }
    own = settings.get(method)
    if hasattr(own, "critic_steps"):
        own = replace(own, critic_steps=1)
    path = settings.parts.get(PathOptions, PathOptions())
    if path.iterations:  # the first of two states is walked back to
        path = replace(path, iterations=2, every=1)
    parts = {
        **settings.parts,
        DistilOptions: replace(
            options, output=str(output), export_every=0, export_best=False, push_to_hub=""
        ),
        EvalOptions: EvalOptions(),
        FitConfig: replace(config, **short),
        method: own,
        PathOptions: path,
    }
    return Settings(parts, {**settings.resolved, **short, "output": str(output)})
