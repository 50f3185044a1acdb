"""How much memory the roles of a method take, said before and after it runs out."""

from __future__ import annotations

from collections.abc import Mapping

from .roles import Role


def role_bytes(role: Role) -> int:
    """Bytes of weights, gradients and two Adam moments of a role's trainable parameters.

    Weights of the frozen base of a LoRA role are not counted: they are shared.
    """
    trainable = sum(p.numel() * p.element_size() for p in role.trainable().values())
    return 4 * trainable


def out_of_memory_advice(roles: Mapping[str, Role], batch_size: int) -> str:
    """The sentence for torch.OutOfMemoryError: the estimate and three settings that lower it."""
    parts = {name: role_bytes(role) / 2**30 for name, role in roles.items()}
    listed = ", ".join(f"{name} {size:.2f} GiB" for name, size in parts.items())
    return (
        "out of memory. Weights, gradients and optimizer moments alone take "
        f"{sum(parts.values()):.2f} GiB ({listed}), plus activations for batch_size={batch_size}. To lower it: raise "
        "accumulate (smaller micro-batches), train LoRA roles (--lora.rank 16), or set bf16=true"
    )
