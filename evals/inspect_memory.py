"""What a training run will take of the memory, before it takes any: no weights are read.

    stepdistill inspect path/to/folder --method dmd2 --lora.rank 64 --load.dtype bfloat16 --bf16
    stepdistill inspect --method dmd2 --config runs/mine/config.yaml --json

The options are those of ``stepdistill train METHOD``; the teacher may stand first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stepdistill.cli import guarded
from stepdistill.conditioning import Conditioning
from stepdistill.config import Settings
from stepdistill.distil import build_without_data, read_settings
from stepdistill.errors import UserError, first_line
from stepdistill.fit import FitConfig
from stepdistill.footprint import Footprint, encoder_parts, footprint, micro_batch, parts_of
from stepdistill.memory import device_gib
from stepdistill.methods import METHODS
from stepdistill.rehearsal import without_data
from stepdistill.teachers import LoadOptions, Teacher

DEFAULT_METHOD = "dmd2"


@dataclass(frozen=True)
class InspectOptions:
    """What a training run will take of the memory.

    Args:
        device: whose kernels are assumed, "cuda" or "cpu"; default: cuda if there is one
        processes: ranks that share the batch, each with a device of its own
        json: print a JSON object, in bytes
    """

    device: str = ""
    processes: int = 1
    json: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("", "cuda", "cpu"):
            raise UserError(f"device must be cuda or cpu, got {self.device}")
        if self.processes < 1:
            raise UserError(f"processes must be at least 1, got {self.processes}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or JSON."""
    name, rest = split(list(sys.argv[1:] if arguments is None else arguments))
    settings = read_settings(name, rest, "stepdistill inspect", (InspectOptions,))
    options = settings.get(InspectOptions)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = inspected(name, settings, device)
    here = device_gib()
    if options.json:
        print(json.dumps({**found.record(), "device": device, "device_gib": here}, indent=1))
        return
    print(found.table())
    fits = "it fits" if found.peak / 2**30 < here else "it does not fit"
    print(f"this machine has {here:.1f} GiB: {fits}")


def split(given: list[str]) -> tuple[str, list[str]]:
    """(method, arguments as ``train METHOD`` takes them). UserError for an unknown method."""
    name, rest = DEFAULT_METHOD, ["--output=inspected"]  # which is never written
    if given and not given[0].startswith("-"):
        rest += ["--teacher", given.pop(0)]
    while given:
        argument = given.pop(0)
        if argument == "--method" or argument.startswith("--method="):
            name = argument.partition("=")[2] or (given.pop(0) if given else "")
        else:
            rest.append(argument)
    if name not in METHODS:
        raise UserError(f"there is no method {name}: the methods are {', '.join(METHODS)}")
    return name, rest


def inspected(name: str, settings: Settings, device: str) -> Footprint:
    """The footprint of ``train NAME`` with these settings."""
    config, ranks = settings.get(FitConfig), settings.get(InspectOptions).processes
    teacher, method = build_without_data(name, settings, device)
    parts = parts_of(method, teacher.denoiser, config, ranks)
    parts += encoder_parts(teacher.encoders(), settings.get(LoadOptions).encoders)
    try:
        cond = conditioning(teacher, micro_batch(config, ranks))
    except Exception as error:  # an encoder that must see what it encodes
        return Footprint(parts, problem=first_line(error))
    return footprint(method, parts, cond, teacher.sample_shape, config, device)


def conditioning(teacher: Teacher, count: int) -> Conditioning:
    """Of ``count`` samples, without data."""
    with without_data(), torch.device("meta"):
        return teacher.probe().to("meta").expand(count)


if __name__ == "__main__":
    guarded(main)
