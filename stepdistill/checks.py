"""What the loop refuses: settings that cannot run, gradients in wrong places, NaN and Inf."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from .data.loading import Data, Micro
from .errors import NonFiniteError, UserError
from .methods.base import Method


def check_runnable(method: Method, data: Data, accelerator: Accelerator) -> None:
    """UserError for empty data, a rate or ``critic_steps`` that cannot train, a launch in parts."""
    if len(data) == 0:
        raise UserError("the data is empty: there is nothing to train on")
    if method.critic_steps < 1:
        raise UserError(f"critic_steps must be at least 1, got {method.critic_steps}")
    for name in method.roles:
        rate = method.learning_rates[name]
        if not 0 < rate < math.inf:
            raise UserError(f"the learning rate of the {name} must be above 0, got {rate}")
    launched, seen = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if launched > seen:
        raise UserError(
            f"this is one of {launched} processes, but accelerate sees {seen}: without a GPU, "
            "launch with `accelerate launch --cpu --num_processes N`"
        )


def check_shared(accelerator: Accelerator, folder: Path, iteration: int) -> None:
    """UserError unless all processes found the same checkpoint."""
    found = accelerator.gather(torch.tensor([iteration], device=accelerator.device))
    if len(found.unique()) > 1:
        raise UserError(
            f"the processes see different checkpoints in {folder} ({found.tolist()}): the folder "
            "must be on a disk that all machines share"
        )


def check_gradients(method: Method, purpose: str) -> None:
    """After a backward: gradients on all parameters of this loss's roles, and on no other role's.

    RuntimeError otherwise: the method is wrong, not the user. DDP would say less, one step later.
    """
    for name, role in method.roles.items():
        trained = name in method.updates[purpose]
        wrong = [k for k, p in role.trainable().items() if (p.grad is not None) != trained]
        if wrong:
            has = "gives no gradient to" if trained else "must not train, but gives gradients to"
            raise RuntimeError(
                f"the {purpose} loss {has} {len(wrong)} parameters of the {name}: {wrong[:5]}"
            )


def all_finite(values: Sequence[Tensor]) -> bool:
    """One read from the device for all of them."""
    return bool(torch.stack([value.float() for value in values]).isfinite().all())


def non_finite(
    purpose: str,
    iteration: int,
    terms: Mapping[str, Tensor],
    norms: Mapping[str, Tensor],
    batches: Sequence[Micro],
) -> NonFiniteError:
    """The error that names the step, the terms and the roles (by the norms of their gradients).

    Gradients are those of all processes, terms and data are this one's.
    """
    bad = [term for term, value in terms.items() if not all_finite([value])]
    bad = [term for term in bad if term != "loss"] or bad
    finite = "its gradient (all terms of this process are finite)"
    where = f"its term(s) {', '.join(bad)}" if bad else finite
    roles = [name for name, norm in norms.items() if not all_finite([norm])] or list(norms)
    mend = "lower the learning rate or grad_clip, or use bf16=false"
    if any(micro.x0 is not None and not micro.x0.isfinite().all() for micro in batches):
        mend = "the data of this batch holds NaN or Inf itself, mend that"
    return NonFiniteError(
        f"NaN or Inf at iteration {iteration} in the {purpose} loss: {where}, training the "
        f"{' and the '.join(roles)}. Nothing was written over, the last checkpoint is from before: "
        f"{mend}, and run the same command to go on"
    )
