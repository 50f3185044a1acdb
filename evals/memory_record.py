"""The record of what training takes of published networks' memory: counted, nothing is loaded.

    python -m stepdistill.evals.memory_record --output evals/records/memory.json

``roles`` are bytes of weights: the frozen teacher in bf16, with generator and critic as float32
LoRA adapters over it, against the teacher alone. Gradients, AdamW's moments and the generator's
average are no part of that ratio. They are of ``peaks``: the most bytes at once in the critic's and
the generator's update of DMD2, rehearsed with the kernels of a GPU (``stepdistill inspect``).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stepdistill.evals.published_shapes import (
    SDXL_LATENT,
    UNETS,
    sdxl_encoders,
    sdxl_told,
    teacher_of,
)
from torch import Tensor, nn

from stepdistill.backbones.sd import StableDiffusion
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.denoisers import Denoiser, Guided
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.fit import FitConfig
from stepdistill.footprint import Footprint, encoder_parts, footprint, parts_of
from stepdistill.methods.dmd2 import DMD2, DMD2Config
from stepdistill.plans import StepPlan
from stepdistill.rehearsal import without_data
from stepdistill.roles import LoRAOptions, Role, trainable_role
from stepdistill.savings import MemoryOptions, save_memory

RANK, BATCH, GUIDANCE = 64, 1, 8.0
TARGETS = {"all published": list(StableDiffusion.lora_targets), "to_q, to_v": ["to_q", "to_v"]}


@dataclass(frozen=True)
class Options:
    """Record the memory that LoRA roles of SDXL and Stable Diffusion 2.1 take.

    Args:
        output: the JSON file to write
    """

    output: str


@dataclass(frozen=True)
class Setting:
    """A way to train SDXL: with a GAN, with gradient checkpointing, where its encoders are."""

    gan: bool
    gradient_checkpointing: bool
    encoders: str = "cpu"


SETTINGS = (
    *(Setting(gan, checkpointed) for gan in (False, True) for checkpointed in (False, True)),
    Setting(gan=True, gradient_checkpointing=True, encoders="device"),
)


def lora_roles(teacher: Denoiser, targets: list[str]) -> tuple[Role, Role]:
    """Generator and critic over the teacher's weights."""
    options = LoRAOptions(rank=RANK)
    with torch.device("meta"):
        generator = trainable_role("generator", teacher, options, targets)
        return generator, trainable_role("critic", teacher, options, targets)


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Of the parameters of all ``modules``, those that share a storage once."""
    held: dict[int, Tensor] = {}
    for module in modules:
        held.update((p.untyped_storage()._cdata, p) for p in module.parameters())
    return sum(p.numel() * p.element_size() for p in held.values())


def role_row(name: str, targets: str) -> dict[str, Any]:
    """Bytes of teacher, generator and critic and their frozen views, and of the teacher alone."""
    teacher = teacher_of(name)
    roles = lora_roles(teacher, TARGETS[targets])
    views = [view for role in roles for view in (role.module, role.frozen)]
    base, held = weight_bytes([teacher]), weight_bytes([teacher, *views])
    return {
        **{"network": name, "targets": targets, "rank": RANK},
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "adapter_parameters": sum(p.numel() for r in roles for p in r.trainable().values()),
        "teacher_bytes": base,
        "bytes": held,
        "ratio": held / base,
    }


def sdxl_footprint(setting: Setting) -> Footprint:
    """DMD2 on SDXL at 1024 pixels, one image, LoRA on all published layers, guidance, autocast."""
    cond = sdxl_told(BATCH)
    config = FitConfig(batch_size=BATCH, shards=1, bf16=True)
    weight = DMD2Config.gan_weight if setting.gan else 0.0
    with without_data("cuda", bf16=True):
        teacher = teacher_of("SDXL")
        generator, critic = lora_roles(teacher, TARGETS["all published"])
        with torch.device("meta"):
            head = CriticTrunk(build_head(teacher, SDXL_LATENT, cond)) if setting.gan else None
        method = DMD2(
            generator,
            critic,
            teacher,
            StepPlan.uniform(1),
            DMD2Config(guidance_scale=GUIDANCE, gan_weight=weight),
            sample_shape=SDXL_LATENT,
            guide=lambda denoiser, scale: Guided(denoiser, scale, cond.select(slice(0, 1))),
            discriminator=head,
        )
        options = MemoryOptions(gradient_checkpointing=setting.gradient_checkpointing)
        save_memory(options, method, teacher)
    parts = parts_of(method, teacher, config)
    parts += encoder_parts(sdxl_encoders(), setting.encoders)
    return footprint(method, parts, cond, SDXL_LATENT, config, "cuda")


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and write ``output``."""
    program = "stepdistill.evals.memory_record"
    options = parse(program, (Options,), {}, arguments).get(Options)
    record = {
        "roles": [role_row(name, targets) for name in UNETS for targets in TARGETS],
        "peaks": [{**asdict(s), **sdxl_footprint(s).record()} for s in SETTINGS],
        "rank": RANK,
        "batch_size": BATCH,
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "peft")},
    }
    Path(options.output).write_text(json.dumps(record, indent=1) + "\n")
    print(options.output)


if __name__ == "__main__":
    guarded(main)
