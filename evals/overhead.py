"""What the loop costs beside the losses: its iterations against bare forward, backward and step.

    OMP_NUM_THREADS=1 python -m stepdistill.evals.overhead --output overhead.json

Both train the method on the built-in digits with the preset's settings, in one process, in turns of
a few cycles (``critic_steps`` iterations). The bare turn calls the same losses, ``backward`` and
fused AdamW, and nothing else: no clipping, average, checks, logs, shards or order of samples.
The machine's noise is in both halves of a pair, so the figure is the median of the pairs' ratios.
Time is this process's own on a CPU, and the clock's on a GPU. Saving is left out: it is as rare as
``save_every`` says.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim import AdamW

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data import Data
from stepdistill.distil import DistilOptions, build_method, load_data, read_settings
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.fit import FitConfig, fit
from stepdistill.methods.base import Batch, Loss, Method
from stepdistill.metrics.latency import work_clock
from stepdistill.teachers import load_teacher


@dataclass(frozen=True)
class Options:
    """Measure the loop's overhead on the digits.

    Args:
        method: dmd2 or ect
        batch_size: of both loops
        pairs: turns of each
        cycles: measured in a turn; one more runs first, unmeasured
        output: where the record is written, as JSON
    """

    method: Literal["dmd2", "ect"] = "dmd2"
    batch_size: int = 128
    pairs: int = 12
    cycles: int = 3
    output: str = ""


class Turns:
    """A method, stamped at the start of each iteration, and how far its training is."""

    def __init__(self, method: Method) -> None:
        self.method, self.done = method, 0
        self.stamps: list[float] = []
        name = f"{next(iter(method.updates))}_loss"  # the loss an iteration begins with
        proper = getattr(method, name)

        def stamped(batch: Batch) -> Loss:
            self.stamps.append(work_clock())
            loss: Loss = proper(batch)
            return loss

        setattr(method, name, stamped)

    def cycles(self, count: int) -> list[float]:
        """Seconds of each of the last ``count`` whole cycles; forgets the stamps."""
        own, self.stamps = self.stamps[:: self.method.critic_steps], []
        return [after - before for before, after in pairwise(own)][-count:]


def our_turn(turns: Turns, data: Data, config: FitConfig, folder: str, iterations: int) -> None:
    """The loop, going on from its own checkpoint."""
    turns.done += iterations
    fit(turns.method, data, dataclasses.replace(config, max_steps=turns.done), folder)


def bare_turn(
    turns: Turns, data: Data, config: FitConfig, adamw: dict[str, AdamW], iterations: int
) -> None:
    """Losses, backward and optimizers."""
    method, device = turns.method, next(iter(adamw.values())).param_groups[0]["params"][0].device
    for iteration in range(turns.done + 1, turns.done + iterations + 1):
        x0, cond = data.fetch(torch.randint(len(data), (config.batch_size,)).tolist())
        x0 = None if x0 is None else x0.to(device)
        for purpose, names in method.updates.items():
            if purpose == "generator" and iteration % method.critic_steps:
                continue
            draws = Draws(config.seed, iteration, purpose, device=device)
            loss: Loss = getattr(method, f"{purpose}_loss")(Batch(x0, cond.to(device), draws))
            torch.autograd.backward(loss.value)
            for name in names:
                adamw[name].step()
                adamw[name].zero_grad(set_to_none=True)
    turns.done += iterations


def measure(options: Options) -> dict[str, Any]:
    """The record: the ratio of ours to the bare loop, its quartiles, and milliseconds."""
    arguments = ["--teacher", "digits", "--output", "unused", "--lr_decay", "0"]
    settings = read_settings(options.method, arguments)
    config = dataclasses.replace(
        settings.get(FitConfig), batch_size=options.batch_size, sample_every=0, evaluate_every=0
    )
    teacher = load_teacher("digits", "cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(settings.get(DistilOptions), teacher)
    ours, bare = (Turns(build_method(options.method, settings, teacher)) for _ in range(2))
    adamw = {
        name: AdamW(
            role.trainable().values(),
            lr=bare.method.learning_rates[name],
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for name, role in bare.method.roles.items()
    }
    iterations = (options.cycles + 1) * bare.method.critic_steps + 1
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.pairs):
            our_turn(ours, data, config, folder, iterations)
            bare_turn(bare, data, config, adamw, iterations)
            pairs.append([statistics.median(t.cycles(options.cycles)) for t in (ours, bare)])
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    milliseconds = [1e3 * statistics.median(side) for side in zip(*pairs, strict=True)]
    return {
        "metric": "loop_overhead",
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "cycle_ms": dict(zip(("ours", "bare"), milliseconds, strict=True)),
        "method": options.method,
        "batch_size": options.batch_size,
        "critic_steps": bare.method.critic_steps,
        "log_every": config.log_every,
        "pairs": options.pairs,
        "cycles": options.cycles,
        "parameters": {
            n: sum(map(torch.Tensor.numel, r.trainable().values()))
            for n, r in bare.method.roles.items()
        },
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "versions": {name: version(name) for name in ("stepdistill", "torch", "accelerate")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write ``output``."""
    options = parse("stepdistill.evals.overhead", (Options,), {}, arguments).get(Options)
    if options.pairs < 2 or options.cycles < 1:
        raise UserError("pairs must be at least 2, and cycles at least 1")
    text = json.dumps(measure(options), indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    guarded(main)
