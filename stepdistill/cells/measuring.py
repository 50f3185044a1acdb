"""A cell's student measured by the engine of ``stepdistill eval``, and the record of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate import PartialState

from ..evaluation.models.subject import load_subject
from ..evaluation.options import writable
from ..evaluation.protocols import find_protocol
from ..evaluation.records.record import record_of, settings_of
from ..evaluation.records.written import write_record
from ..evaluation.running.choices import Asked as AskedOfEval
from ..evaluation.running.engine import Engine
from ..evaluation.running.evaluation import Evaluation
from ..memory import peak_gb
from .cell import CELL, Cell
from .pairs import APART
from .tasks import peak_bytes
from .training import Spent
from .worlds import fid_ratio

BATCH = 500  # samples a call, as the bundled measures take


@torch.no_grad()
def measure(cell: Cell, spent: Spent) -> dict[str, Any] | None:
    """Write the record of a trained cell; None if it was asked to stop, and the same goes on."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    writable(cell.record)
    subject = load_subject(str(cell.folder / "student"), device=state.device)
    first = cell.seed % APART * cell.asked.samples  # no noise twice over the seeds of training
    asked = AskedOfEval(cell.record, num=cell.asked.samples, batch_size=BATCH, seed=first)
    protocol = find_protocol(cell.asked.world.protocol)
    evaluation = Evaluation.of(subject, protocol, asked, state.device)
    settings = settings_of(evaluation)
    with evaluation.work.held(settings):
        evaluation.begin()
        references = evaluation.measure_references()
        order, groups = evaluation.order, evaluation.groups
        if not Engine(subject, order, evaluation.work, state, groups).run(evaluation.shards):
            return None
        evaluation.check_images()
        found = record_of(evaluation, references, settings, processes=1)
        record = with_cell(found, cell, spent)
        write_record(record, cell.record)
        evaluation.work.remove()
    return record


def with_cell(record: Mapping[str, Any], cell: Cell, spent: Spent) -> dict[str, Any]:
    """The benchmark's record, and what is known of the training.

    ``fid_ratio`` is beside the bundled figures of the teacher, each distance above the floor at its
    own count of samples; the floor is the record's own where its protocol measures one.
    """
    task, world, metrics = cell.task, cell.asked.world, record["metrics"]
    floor = metrics.get("fid_floor")
    floor = world.floor_at(cell.asked.samples) if floor is None else floor
    bar = world.bar()
    told = {
        **cell.identity(),
        **{name: _known(value) for name, value in asdict(spent).items()},
        "minutes": cell.asked.minutes,
        "max_steps": task.iterations,
        "calls": task.spent(spent.iterations),
        "calls_per_sample": dict(task.calls.updates),
        "calls_per_iteration": task.calls.per_iteration,
        "pair_calls": task.pair_calls,
        "update_peak_bytes": peak_bytes(cell.asked, task),
        "process_peak_bytes": int(peak_gb() * 2**30),
        "threads": torch.get_num_threads(),
        "fid_ratio": fid_ratio(metrics["fid"], floor, bar),
        "fid_floor": floor,
        "accuracy_metric": world.accuracy,
        "bar": bar,
    }
    notes = list(record["notes"])
    if spent.stopped:
        notes.append(
            f"stopped at its limit of {cell.asked.minutes:g} processor minutes, after "
            f"{spent.iterations:,} of {task.iterations:,} iterations"
        )
    return {**record, "notes": notes, CELL: told}


def _known(value: Any) -> Any:
    """None for a time that is not known, which JSON has no number for."""
    return None if isinstance(value, float) and math.isnan(value) else value
