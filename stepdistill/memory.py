"""How much memory there is, and the sentence for when it runs out."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from .data.loading import Data
from .errors import StepDistillError
from .fit_config import FitConfig
from .footprint import GIB, Footprint, footprint, micro_batch, parts_of
from .methods.base import Method
from .twins import on_meta


def out_of_memory_advice(found: Footprint, config: FitConfig) -> str:
    """The sentence for torch.OutOfMemoryError: the estimate and the settings that lower it."""
    listed = ", ".join(
        f"{part.name} {part.resident / GIB:.2f} GiB" for part in found.parts if part.resident
    )
    peaks = " and ".join(
        f"{size / GIB:.2f} GiB in the {purpose} update" for purpose, size in found.peaks.items()
    )
    moving = f"; with gradients and activations {peaks}" if peaks else ", plus activations"
    return (
        f"out of memory. Weights and optimizer moments alone take {found.resident / GIB:.2f} GiB "
        f"({listed}){moving}, for batch_size={config.batch_size} in micro-batches of "
        f"{micro_batch(config)}; there are {device_gib():.1f} GiB. To lower it: raise accumulate "
        "(smaller micro-batches), set memory.gradient_checkpointing=true, train LoRA roles "
        "(--lora.rank 16), or set bf16=true; stepdistill inspect tells what each one saves"
    )


@contextlib.contextmanager
def out_of_memory_explained(
    method: Method, data: Data, config: FitConfig, accelerator: Accelerator
) -> Iterator[None]:
    """Turn torch.OutOfMemoryError into the sentence above."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        ranks, device = accelerator.num_processes, accelerator.device.type
        found = estimate(method, data, config, ranks, device)
        raise StepDistillError(out_of_memory_advice(found, config)) from error


def estimate(method: Method, data: Data, config: FitConfig, ranks: int, device: str) -> Footprint:
    """The footprint of a live method, found on a twin that takes no memory."""
    frozen = nn.ModuleList(v for v in vars(method).values() if isinstance(v, nn.Module))
    parts = parts_of(method, frozen, config, ranks)
    try:
        x0, cond = data.fetch([0])
        shape = tuple(x0.shape[1:]) if x0 is not None else getattr(method, "sample_shape", ())
        one = cond.expand(micro_batch(config, ranks)).to("meta")
        twin = on_meta(method)
    except Exception as error:  # the estimate must not hide what ran out
        return Footprint(parts, problem=str(error))
    return footprint(twin, parts, one, shape, config, device)


def device_gib() -> float:
    """GiB of the GPU if there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def peak_gb() -> float:
    """The most memory this process has held: of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
