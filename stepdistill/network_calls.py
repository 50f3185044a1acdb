"""How many network calls a training takes: the measure by which methods are compared.

A forward of a denoiser's network on B samples is B calls, and a backward through it two more each:
3 B with gradients, B without. Teacher, critic, generator and their frozen views count alike, and a
pass of 2 B samples (guidance, real samples of a GAN) counts as 2 B. A GAN head is no denoiser, and
counts nothing; what gradient checkpointing computes again is not counted either.

The calls are counted where they happen, on the losses themselves. A pass whose output requires
gradients is taken to get them; one that is used for its features alone (a GAN's) counts whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from .denoisers import Backbone
from .draws import Draws
from .methods.base import Batch, Loss, Method

FORWARD, BACKWARD = 1, 2
FEW, MANY = 4, 16  # iterations that calls are counted at, evenly spread over a run


@dataclass
class Counter:
    """``calls`` so far, each of one sample."""

    calls: int = 0


@contextmanager
def counting() -> Iterator[Counter]:
    """Inside, the calls of every denoiser's network in this process are counted."""
    counter = Counter()

    def count(module: Any, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, Backbone):
            counter.calls += len(given[0]) * (FORWARD + BACKWARD * output.requires_grad)

    handle = register_module_forward_hook(count)
    try:
        yield counter
    finally:
        handle.remove()


@dataclass(frozen=True)
class Calls:
    """Mean calls a sample of each update, by purpose; the generator's is every so many-th."""

    updates: Mapping[str, float]
    critic_steps: int

    def of(self, iterations: int, batch_size: int) -> float:
        """Of a whole run: N critic updates and N // critic_steps generator updates."""
        turns = dict.fromkeys(self.updates, iterations)
        turns["generator"] = iterations // self.critic_steps
        return batch_size * sum(turns[name] * calls for name, calls in self.updates.items())

    @property
    def per_iteration(self) -> float:
        """A sample's, over whole cycles of ``critic_steps``."""
        return self.of(self.critic_steps, 1) / self.critic_steps

    def iterations(self, budget: float, batch_size: int) -> int:
        """The most whose calls are within ``budget``; 0 if one iteration is too many."""
        most = int(budget // (batch_size * self.per_iteration)) + self.critic_steps
        while most and self.of(most, batch_size) > budget:
            most -= 1
        return most


def calls_of(
    method: Method, size: int, batch_of: Callable[[Draws], Batch], iterations: int, seed: int = 0
) -> Calls:
    """The mean calls of the updates of ``method``, whose losses are run on batches of ``size``.

    Exact over what all samples share (an exit step). What each sample draws for itself (guidance at
    some noise levels), and what changes on the way, is a mean over MANY of ``iterations``; where
    FEW of them are equal, there is no such thing.
    """
    found = {}
    for purpose in method.updates:
        loss_of: Callable[[Batch], Loss] = getattr(method, f"{purpose}_loss")

        def calls(draws: Draws, loss_of: Callable[[Batch], Loss] = loss_of) -> float:
            with counting() as counter:
                loss_of(batch_of(draws))
            return counter.calls / size

        with torch.random.fork_rng(devices=[]):
            for count in (FEW, MANY):
                probed = sorted({1 + i * iterations // count for i in range(count)})
                means = [over_branches(calls, seed, i, purpose) for i in probed]
                if len(set(means)) == 1:
                    break
        found[purpose] = sum(means) / len(means)
    return Calls(found, method.critic_steps)


class ChosenDraws(Draws):
    """Draws whose shared indices are those of ``path``, then 0; ``sizes`` is what was asked for."""

    def __init__(self, path: Sequence[int], seed: int, iteration: int, purpose: str) -> None:
        super().__init__(seed, iteration, purpose)
        self.path, self.sizes = path, list[int]()

    def shared_index(self, n: int) -> int:
        """See :class:`Draws`."""
        place = len(self.sizes)
        self.sizes.append(n)
        return self.path[place] if place < len(self.path) else 0


def over_branches(
    value: Callable[[Draws], float], seed: int, iteration: int, purpose: str
) -> float:
    """The mean of ``value`` over all that shared indices can be, each equally likely."""
    total, paths = 0.0, [tuple[int, ...]()]
    while paths:
        path = paths.pop()
        draws = ChosenDraws(path, seed, iteration, purpose)
        found, sizes = value(draws), draws.sizes
        total += found / prod(sizes)
        for place in range(len(path), len(sizes)):
            zeros = (0,) * (place - len(path))
            paths += [(*path, *zeros, other) for other in range(1, sizes[place])]
    return total


def calls_of_sampler(sampler: Callable[[], Tensor]) -> int:
    """The calls of whatever ``sampler`` samples."""
    with counting() as counter, torch.no_grad():
        sampler()
    return counter.calls
