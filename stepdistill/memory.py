"""How much memory the roles of a method take, said when it runs out."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping

import torch

from .errors import StepDistillError
from .roles import Role


def role_bytes(role: Role) -> int:
    """Bytes of weights, gradients and two Adam moments of a role's trainable parameters."""
    return 4 * sum(p.numel() * p.element_size() for p in role.trainable().values())


def base_bytes(roles: Mapping[str, Role]) -> int:
    """Bytes of the weights below LoRA adapters; roles that share them count them once."""
    frozen = (p for role in roles.values() for p in role.module.parameters() if not p.requires_grad)
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in frozen}.values())


def out_of_memory_advice(roles: Mapping[str, Role], batch_size: int) -> str:
    """The sentence for torch.OutOfMemoryError: the estimate and three settings that lower it."""
    parts = {name: role_bytes(role) / 2**30 for name, role in roles.items()}
    parts |= {"frozen base": base_bytes(roles) / 2**30} if base_bytes(roles) else {}
    listed = ", ".join(f"{name} {size:.2f} GiB" for name, size in parts.items())
    return (
        "out of memory. Weights, gradients and optimizer moments alone take "
        f"{sum(parts.values()):.2f} GiB ({listed}), plus the teacher, and activations for "
        f"batch_size={batch_size}. To lower it: raise accumulate (smaller micro-batches), train "
        "LoRA roles (--lora.rank 16), or set bf16=true"
    )


@contextlib.contextmanager
def out_of_memory_explained(roles: Mapping[str, Role], batch_size: int) -> Iterator[None]:
    """Turn torch.OutOfMemoryError into the sentence above."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StepDistillError(out_of_memory_advice(roles, batch_size)) from error


def peak_gb() -> float:
    """The most memory this process has held: of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
