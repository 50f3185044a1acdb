"""Which samples an iteration reads, and how they are fetched ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..conditioning import Conditioning
from ..draws import key
from ..errors import StepDistillError, UserError

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


class _Fetch(Dataset[Any]):
    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, indices: list[int]) -> Sample | StepDistillError:
        try:
            return self.data.fetch(indices)
        except StepDistillError as error:
            return error  # raised by the reader: torch would hide it in a worker's traceback


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut into ``shards`` equal shards, and which of them are this rank's.

    ``micro`` has a range of global shard numbers for each micro-batch of this rank.
    """

    batch_size: int
    shards: int
    micro: tuple[range, ...]

    @classmethod
    def of(
        cls, batch_size: int, shards: int, accumulate: int = 1, rank: int = 0, ranks: int = 1
    ) -> Cut:
        """Whole shards for rank after rank, micro-batch after micro-batch.

        ``shards`` that do not divide the batch become the largest number that divides both.
        UserError if ranks and micro-batches cannot take whole shards.
        """
        shards, parts = math.gcd(batch_size, shards), ranks * accumulate
        if shards % parts:
            raise UserError(
                f"{ranks} processes x accumulate={accumulate} must divide the {shards} shards of a "
                f"batch of {batch_size}: set shards and batch_size to multiples of {parts}"
            )
        each = shards // parts
        own = range(rank * accumulate, (rank + 1) * accumulate)
        return cls(batch_size, shards, tuple(range(p * each, (p + 1) * each) for p in own))

    def places(self, micro: range) -> range:
        """The places in the global batch of a micro-batch's samples."""
        size = self.batch_size // self.shards
        return range(micro.start * size, micro.stop * size)


class ShardedOrder:
    """Index lists of this rank's micro-batches from ``first`` on, each epoch a new permutation.

    Position p = iteration * batch_size + (place in the global batch) of an endless list made of
    permutations keyed by (seed, epoch), so the order is the same for any number of ranks.
    """

    def __init__(self, size: int, cut: Cut, seed: int, first: int, last: int) -> None:
        self.size, self.cut = size, cut
        self.seed, self.first, self.last = seed, first, last
        self._permutations: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.first, self.last):
            begin = iteration * self.cut.batch_size
            for micro in self.cut.micro:
                yield [self._index(begin + place) for place in self.cut.places(micro)]

    def __len__(self) -> int:
        return max(0, self.last - self.first) * len(self.cut.micro)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(key(self.seed, "epoch", epoch))
            permutation = torch.randperm(self.size, generator=generator).tolist()
            recent = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**recent, epoch: permutation}
        return self._permutations[epoch][offset]


def micro_batches(data: Data, order: ShardedOrder, workers: int = 0) -> Iterator[Sample]:
    """One micro-batch of ``order`` at a time, read by ``workers`` processes ahead."""
    fetch = _Fetch(data)
    for read in DataLoader(fetch, None, sampler=order, num_workers=workers, collate_fn=_as_it_is):
        if isinstance(read, StepDistillError):
            raise read
        yield read


def _as_it_is(sample: Any) -> Any:
    """Instead of torch's conversion, which would rebuild a Conditioning and lose its batch size."""
    return sample


class Micro(NamedTuple):
    """A micro-batch and the global numbers of its shards."""

    shards: range
    x0: Tensor | None
    cond: Conditioning

    def to(self, device: torch.device) -> Micro:
        """Move it to ``device``."""
        x0 = None if self.x0 is None else self.x0.to(device, non_blocking=True)
        return Micro(self.shards, x0, self.cond.to(device))


def global_batches(
    data: Data, cut: Cut, seed: int, first: int, last: int, workers: int = 0
) -> Iterator[list[Micro]]:
    """This rank's micro-batches of the iterations ``first`` + 1 to ``last``."""
    order = ShardedOrder(len(data), cut, seed, first, last)
    loaded = micro_batches(data, order, workers)
    for _ in range(first, last):
        yield [Micro(shards, *next(loaded)) for shards in cut.micro]
