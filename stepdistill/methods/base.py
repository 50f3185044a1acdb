"""The contract between a method and the loop that trains it.

A method is a pair of losses over a few roles. It computes; it never calls backward, steps, logs,
saves or draws pictures. ``fit`` builds optimizers, clipping and checks from what is declared here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..conditioning import Conditioning
from ..draws import Draws
from ..plans import StepPlan
from ..roles import Role


class Batch(NamedTuple):
    """One micro-batch: samples if the data has them, their conditioning, and the draws.

    ``z`` is the noise that a teacher's samples were made from, None for real samples. ``texts`` are
    their prompts, "" where a sample is told nothing, for a method that needs them.
    """

    x0: Tensor | None
    cond: Conditioning
    draws: Draws
    z: Tensor | None = None
    texts: tuple[str, ...] | None = None


class Loss(NamedTuple):
    """A scalar to descend, and detached 0-dim tensors to log, by term."""

    value: Tensor
    logs: dict[str, Tensor]


class Method(Protocol):
    """What ``fit`` trains.

    ``updates`` says which roles each loss trains, in the order in which an iteration runs them:
    {"critic": ("critic", "head"), "generator": ("generator",)}. ``learning_rates`` has one entry a
    role. The loss "generator" runs on every ``critic_steps``-th iteration, "critic" on each.
    ``needs_data`` says whether its batches must hold real samples, with these settings. A method
    whose losses normalise by running means names them in ``statistics``, a mapping to RunningMeans;
    one whose losses read the samples' prompts has a true ``needs_texts``.
    """

    config: Any
    plan: StepPlan
    roles: dict[str, Role]
    updates: dict[str, tuple[str, ...]]
    learning_rates: dict[str, float]
    critic_steps: int
    needs_data: bool

    def generator_loss(self, batch: Batch) -> Loss: ...


class CriticMethod(Method, Protocol):
    """A method with a critic has a second loss."""

    def critic_loss(self, batch: Batch) -> Loss: ...


@dataclass(frozen=True)
class MethodCard:
    """A row of ``stepdistill methods``. ``needs`` lists of: critic, data, pairs."""

    name: str
    title: str
    paper: str
    needs: tuple[str, ...]
    guidance: str
    teachers: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)
