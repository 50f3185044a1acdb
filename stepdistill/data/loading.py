"""Which samples an iteration reads, and how they are fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..conditioning import Conditioning
from ..draws import key

Sample = tuple[Tensor | None, Conditioning]


class Data(Protocol):
    """A finite set of samples: ``fetch`` gives x0 (B, *) or None, and the conditioning."""

    def __len__(self) -> int: ...

    def fetch(self, indices: list[int]) -> Sample: ...


@dataclass(frozen=True)
class TensorData:
    """Samples held in memory."""

    x0: Tensor | None
    cond: Conditioning

    def __len__(self) -> int:
        return self.cond.batch_size

    def fetch(self, indices: list[int]) -> Sample:
        """The samples at ``indices``."""
        index = torch.tensor(indices)
        return None if self.x0 is None else self.x0[index], self.cond.select(index)


class _Fetch(Dataset[Sample]):
    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, indices: list[int]) -> Sample:
        return self.data.fetch(indices)


class ShardedOrder:
    """Index lists of this rank's micro-batches from ``first`` on, each epoch a new permutation.

    Position p = iteration * batch_size + (place in the global batch) of an endless list made of
    permutations keyed by (seed, epoch), so the order is the same for any number of ranks.
    """

    def __init__(
        self, size: int, batch_size: int, places: list[range], seed: int, first: int, last: int
    ) -> None:
        self.size, self.batch_size, self.places = size, batch_size, places
        self.seed, self.first, self.last = seed, first, last
        self._permutations: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.first, self.last):
            for places in self.places:
                yield [self._index(iteration * self.batch_size + place) for place in places]

    def __len__(self) -> int:
        return (self.last - self.first) * len(self.places)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(key(self.seed, "epoch", epoch))
            permutation = torch.randperm(self.size, generator=generator).tolist()
            recent = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**recent, epoch: permutation}
        return self._permutations[epoch][offset]


def micro_batches(data: Data, order: ShardedOrder, workers: int = 0) -> DataLoader[Sample]:
    """A loader that yields one micro-batch of ``order`` at a time, ``workers`` processes ahead."""
    return DataLoader(_Fetch(data), sampler=order, batch_size=None, num_workers=workers)
