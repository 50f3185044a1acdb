"""What the shards of one repeat hold, read in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..measures.groups import GROUP
from ..measures.image_metrics import Compared
from ..measures.views import View
from ..reading.measuring import Gathered, Measured, Want
from .engine import Order
from .work import Shard, WorkFolder


@dataclass(frozen=True)
class Shards:
    """``measures.Evidence`` of the shards of one repeat.

    ``references`` are by a view's key; ``kept`` are the keys of views whose features are needed all
    at once; ``apart`` are the shards of the prompts that were sampled several times.
    """

    work: WorkFolder
    order: Order
    shards: Sequence[Shard]
    references: Mapping[str, Measured]
    kept: frozenset[str] = frozenset()
    apart: Sequence[Shard] = ()
    _compared: dict[str, Compared] = field(default_factory=dict, repr=False)

    @property
    def num(self) -> int:
        """Samples."""
        return self.order.num

    def compared(self, view: View) -> Compared:
        """Its features beside the reference's: moments, streamed, and all where they are needed."""
        if view.key not in self._compared:
            features = self.order.views[view.key]
            gathered = Gathered(Want(features, view.key in self.kept))
            for block in self.blocks(view):
                gathered.add(block)
            own = gathered.measured({"path": "the samples"})
            reference = self.references.get(view.key)
            self._compared[view.key] = Compared(own, reference, features, self.order.seed)
        return self._compared[view.key]

    def blocks(self, view: View) -> Iterator[Tensor]:
        """Its features of all samples, a shard at a time."""
        for shard in self.shards:
            yield self.work.read(shard.number, view.key)

    def scores(self, scorer: str) -> Tensor:
        """Each sample's score."""
        return torch.cat([self.work.read(shard.number, scorer) for shard in self.shards])

    def groups(self) -> Tensor:
        """The diversity of each prompt that was sampled several times."""
        return torch.cat([self.work.read(shard.number, GROUP) for shard in self.apart])

    def group_sizes(self) -> dict[str, Any]:
        """How many such prompts, and how often each was sampled."""
        each = self.apart[0].end - self.apart[0].begin
        return {"prompts": len(self.apart), "samples_of_each": each}

    def told(self) -> list[Any]:
        """What each sample is told."""
        begin = self.shards[0].begin
        return self.order.told_to(range(begin, begin + self.num)) or []

    def strata(self) -> Tensor | None:
        """A number for each class or prompt, where how often each is told is fixed."""
        if not self.order.told.in_strata:
            return None
        told = self.told()
        numbers = {own: number for number, own in enumerate(dict.fromkeys(told))}
        return torch.tensor([numbers[own] for own in told])
