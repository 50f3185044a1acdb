"""DisBack: distribution backtracking (Zhang et al. 2024, arXiv:2408.15991).

A new generator's samples lie where the teacher's score means little. So the teacher is first made
worse on purpose: a copy s' of it learns to denoise the samples of the frozen, untrained generator,

    L = E[ w(t) |s'(x_t) - x0|^2 ],  x0 = G(z, c)                     (degradation recording)

and its states s'_0 (the teacher), s'_1, ..., s'_N are kept. Then the generator is led back along
them: the critic starts as s'_N, and the real score is that of s'_(N-1), ..., s'_1 and at last the
teacher's, each for ``interval`` iterations (distribution backtracking). Losses are those of the
method that the path is of: any of the ones that match distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import UserError
from ..roles import Role
from .base import Batch, Loss, MethodCard
from .dmd2 import DMD2, DMD2Config
from .matching import Matching


@dataclass(frozen=True)
class PathOptions:
    """A way back to the teacher, over states of it that were made worse."""

    iterations: int = 0  # of the degradation, which comes before the training; 0: no path
    every: int = 100  # of them lie between two states of the path
    interval: int = 1000  # iterations of the training for each state
    lr: float = 5e-7  # learning rate of the degradation

    def __post_init__(self) -> None:
        for name, least in (("iterations", 0), ("every", 1), ("interval", 1)):
            if getattr(self, name) < least:
                raise UserError(f"path.{name} must be at least {least}, got {getattr(self, name)}")
        if self.iterations % self.every:
            raise UserError(
                f"path.iterations={self.iterations} is no multiple of path.every={self.every}: "
                "the last state would be lost"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """The iterations of the degradation whose states are kept: those of s'_1, ..., s'_N."""
        return tuple(range(self.every, self.iterations + 1, self.every))


def index_at(iteration: int, states: int, interval: int) -> int:
    """k of the s'_k whose score is the real one: N-1, N-2, ..., 0, and 0 from there on."""
    return max(0, states - 1 - (iteration - 1) // interval)


class Degradation:
    """The first half: a method for ``fit`` whose only role is the critic of ``method``.

    It learns as the critic does, from samples of a generator that does not. ``fit`` calls the role
    that it averages the generator: here s', as it is the teacher to be in ``Denoising``.
    """

    def __init__(self, method: Matching, lr: float) -> None:
        self.config, self.plan, self.needs_data = method.config, method.plan, method.needs_data
        self.method = method.denoising_alone()
        self.roles = {"generator": method.critic}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates, self.critic_steps = {"generator": lr}, 1

    def generator_loss(self, batch: Batch) -> Loss:
        """The critic's."""
        return self.method.critic_loss(batch)


class Backtracking:
    """The second half: s'_(N-1), ..., s'_1, then ``teacher``, by the iteration alone.

    ``states`` read the trained weights of s'_1, ..., s'_N, by name as ``critic`` has them. While it
    is on its way it holds one copy of those weights beside the roles; of a LoRA critic that is its
    adapters alone. They are let go when the teacher's turn has come.
    """

    def __init__(
        self,
        teacher: Denoiser,
        critic: Role,
        states: Sequence[Callable[[], Mapping[str, Tensor]]],
        interval: int,
    ) -> None:
        self.teacher, self.critic = teacher, critic
        self.states, self.interval = tuple(states), interval
        self._held: tuple[int, Any] | None = None  # k, s'_k

    def at(self, iteration: int) -> Denoiser:
        """Whose score is the real one; see :func:`index_at`. UserError for a damaged state."""
        k = index_at(iteration, len(self.states), self.interval)
        if k == 0:
            self._held = None
            return self.teacher
        if self._held is None or self._held[0] != k:
            state = self.critic.standing() if self._held is None else self._held[1]
            self._put(k, dict(state.named_parameters()))
            self._held = k, state
        denoiser: Denoiser = self._held[1]
        return denoiser

    def copied(self) -> list[Tensor]:
        """What the critic trains, unless there is no state on the way."""
        return list(self.critic.trainable().values()) if len(self.states) > 1 else []

    def start(self) -> None:
        """Put s'_N into the critic."""
        self._put(len(self.states), self.critic.trainable())

    @torch.no_grad()
    def _put(self, k: int, weights: Mapping[str, Tensor]) -> None:
        trained = self.critic.trainable()
        if any(parameter.is_meta for parameter in trained.values()):
            return  # a twin that takes no memory
        found = self.states[k - 1]()
        for name in trained:
            weights[name].copy_(found[name])


@dataclass(frozen=True)
class StateFile:
    """The weights of s'_k in a safetensors file."""

    file: Path

    def __call__(self) -> dict[str, Tensor]:
        """By name. UserError for a file that is missing or damaged."""
        try:
            weights: dict[str, Tensor] = load_file(self.file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.file}, a state of the path back to the teacher, is damaged ({error}): "
                f"remove {self.file.parent.parent}, and the path is recorded again"
            ) from error
        return weights


class DisBack(DMD2):
    """:class:`DMD2` with a path, as published; ``--path.iterations`` gives others one too."""

    Config = DMD2Config
    card = MethodCard(
        name="disback",
        title="Distribution backtracking",
        paper="Zhang et al. 2024, arXiv:2408.15991",
        needs=("critic", "data unless gan_weight is 0"),
        guidance="real score",
        teachers=("any denoiser",),
    )
    defaults: ClassVar[dict[str, Any]] = {"path.iterations": 1000}
