"""What a method's updates cost beside another's: f-distill beside DMD2.

    OMP_NUM_THREADS=1 python -m stepdistill.evals.step_cost --output step_cost.json

Both are on the built-in digits with one preset's settings and the same samples, in one process, in
turns of one cycle: losses and backward of ``critic_steps`` critic updates and one generator update.
The machine's noise is in both halves of a pair, so the figure is the median of the pairs' ratios.
Time is this process's own on a CPU, and the clock's on a GPU.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.conditioning import Conditioning
from stepdistill.config import parse
from stepdistill.distil import DistilOptions, build_method, load_data, read_settings
from stepdistill.draws import Draws
from stepdistill.errors import UserError
from stepdistill.evaluation.options import writable
from stepdistill.methods.base import Batch, Loss, Method
from stepdistill.metrics.latency import work_clock
from stepdistill.presets import digits
from stepdistill.teachers import load_teacher


@dataclass(frozen=True)
class Options:
    """Measure the cost of a method's updates beside another's, on the digits.

    Args:
        output: where the record is written, as JSON
        method: whose cost
        beside: whose cost it is divided by
        batch_size: of both
        pairs: cycles of each
    """

    output: str
    method: str = "fdiv"
    beside: str = "dmd2"
    batch_size: int = 128
    pairs: int = 40


def built(name: str) -> Method:
    """The method with the settings of DMD2's preset, GAN and matching at one noise."""
    own = {k: v for k, v in digits.dmd2(1).items() if k.startswith("method.")}
    given = [f"--{key}={json.dumps(value)}" for key, value in own.items()]
    settings = read_settings(name, ["--teacher=digits", "--output=unused", *given])
    return build_method(name, settings, load_teacher("digits", device()))


def device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cycle(method: Method, x0: Tensor, cond: Conditioning, first: int) -> float:
    """Seconds of one cycle from iteration ``first`` on."""
    began = work_clock()
    for iteration in range(first, first + method.critic_steps):
        for purpose in method.updates:
            if purpose == "generator" and iteration + 1 < first + method.critic_steps:
                continue
            loss_of: Any = getattr(method, f"{purpose}_loss")
            loss: Loss = loss_of(Batch(x0, cond, Draws(0, iteration, purpose, device=x0.device)))
            roles = [method.roles[name] for name in method.updates[purpose]]
            learn = [p for role in roles for p in role.trainable().values()]
            torch.autograd.grad(loss.value, learn)
    return work_clock() - began


def measure(options: Options) -> dict[str, Any]:
    """The record: the median ratio, its quartiles, and milliseconds."""
    methods = [built(options.method), built(options.beside)]
    settings = read_settings("dmd2", ["--teacher=digits", "--output=unused"])
    data = load_data(settings.get(DistilOptions), load_teacher("digits"))
    x0, cond = data.fetch(list(range(options.batch_size)))
    assert x0 is not None
    x0, cond = x0.to(device()), cond.to(device())
    pairs = [[cycle(m, x0, cond, i) for m in methods] for i in range(options.pairs + 2)][2:]
    low, middle, high = statistics.quantiles([own / other for own, other in pairs], n=4)
    return {
        "metric": "step_cost",
        "method": options.method,
        "beside": options.beside,
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "cycle_ms": [1e3 * statistics.median(side) for side in zip(*pairs, strict=True)],
        "critic_steps": methods[1].critic_steps,
        "batch_size": options.batch_size,
        "pairs": options.pairs,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "versions": {name: version(name) for name in ("stepdistill", "torch")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write ``output``."""
    options = parse("stepdistill.evals.step_cost", (Options,), {}, arguments).get(Options)
    if options.pairs < 2:
        raise UserError("pairs must be at least 2")
    output = writable(Path(options.output))
    text = json.dumps(measure(options), indent=1)
    print(text)
    output.write_text(text + "\n")


if __name__ == "__main__":
    guarded(main)
