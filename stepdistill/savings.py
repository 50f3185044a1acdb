"""Options that lower a training run's memory, applied to the roles before any of them is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .denoisers import Denoiser
from .errors import UserError
from .methods.base import Method
from .roles import Role

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class MemoryOptions:
    """Options that lower memory."""

    gradient_checkpointing: bool = False  # compute activations again in the backward pass
    teacher_fp8: bool = False  # keep the teacher's weights in 8 bits, cast layer by layer
    teacher_int8: bool = False  # keep those of its linear layers in int8, which needs torchao

    def __post_init__(self) -> None:
        if self.teacher_fp8 and self.teacher_int8:
            raise UserError("teacher_fp8 and teacher_int8 are two ways to do the same: take one")
        if self.teacher_int8 and importlib.util.find_spec("torchao") is None:
            raise UserError(
                "teacher_int8 needs torchao, which is not installed: pip install "
                "'stepdistill[int8]', or set teacher_int8=false"
            )


def save_memory(options: MemoryOptions, method: Method, teacher: Denoiser) -> None:
    """Apply ``options``. UserError for a network that cannot do so, or roles that share it."""
    if options.gradient_checkpointing:
        for role in method.roles.values():
            if isinstance(role.module, Denoiser):
                checkpoint_gradients(role)
    if options.teacher_fp8:
        keep_in_fp8(teacher, method.roles.values())
    if options.teacher_int8:
        keep_in_int8(teacher, method.roles.values())


def checkpoint_gradients(role: Role) -> None:
    """Keep the inputs of the network's blocks alone, and compute the rest again in the backward.

    The role's skeleton alone is told, not the teacher's nor another role's over the same weights;
    its frozen view, made after, does the same.
    """
    for network in diffusers_networks(role.module):
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise UserError(
                f"memory.gradient_checkpointing: {type(network).__name__} does not support it, "
                "leave it out"
            )
        network.enable_gradient_checkpointing()
    role.drop_view()


def keep_in_fp8(teacher: Denoiser, roles: Iterable[Role]) -> None:
    """Weights in float8 (e4m3), each layer cast to the teacher's dtype while it computes.

    Norms, embeddings and what diffusers names sensitive stay. The cast replaces the weights of a
    skeleton, so no role may share them: UserError for LoRA roles.
    """
    refuse_sharing("teacher_fp8", teacher, roles)
    for network in diffusers_networks(teacher):
        network.enable_layerwise_casting(FP8, compute_dtype=network.dtype)


def keep_in_int8(teacher: Denoiser, roles: Iterable[Role]) -> None:
    """Weights of linear layers in int8, each output's with a scale of its own (torchao).

    Quantised after full roles are copied of it: they learn from the weights as they were loaded.
    Convolutions, norms and embeddings stay. UserError for LoRA roles, whose base this would be.
    """
    refuse_sharing("teacher_int8", teacher, roles)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(teacher.backbone.network, Int8WeightOnlyConfig())


def refuse_sharing(option: str, teacher: Denoiser, roles: Iterable[Role]) -> None:
    """UserError if a role is made of the teacher's own weights, which ``option`` would replace."""
    own = {p.untyped_storage()._cdata for p in teacher.parameters()}
    for role in roles:
        if any(p.untyped_storage()._cdata in own for p in role.module.parameters()):
            raise UserError(
                f"memory.{option}: the {role.name} is a LoRA over the teacher's own weights, "
                "which cannot be cast under it: leave it out, or set lora.rank=0"
            )


def diffusers_networks(denoiser: Denoiser) -> list[Any]:
    """The diffusers models of a denoiser: one, or several experts. UserError if it has none.

    A U-Net's blocks are diffusers models too, and belong to the U-Net.
    """
    from diffusers import ModelMixin

    network: nn.Module = denoiser.backbone.network
    found = outermost(network, ModelMixin)
    if not found:
        raise UserError(
            f"memory options are for diffusers networks, and {type(network).__name__} is none: "
            "leave them out"
        )
    return found


def outermost(module: nn.Module, kind: type[Any]) -> list[Any]:
    """The modules of ``kind`` in ``module`` that lie in no other of them."""
    if isinstance(module, kind):
        return [module]
    return [found for child in module.children() for found in outermost(child, kind)]
