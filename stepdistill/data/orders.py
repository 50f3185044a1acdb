"""Which samples an iteration reads: functions of (seed, iteration), whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..draws import key
from ..errors import UserError


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
                yield [self.index_at(begin + place) for place in self.cut.places(micro)]

    def __len__(self) -> int:
        return max(0, self.last - self.first) * len(self.cut.micro)

    def index_at(self, position: int) -> int:
        """The sample at a position of the endless list."""
        epoch, offset = divmod(position, self.size)
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(key(self.seed, "epoch", epoch))
            permutation = torch.randperm(self.size, generator=generator).tolist()
            recent = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**recent, epoch: permutation}
        return self._permutations[epoch][offset]


class GroupedOrder:
    """As ShardedOrder, with every global batch from one of ``groups``; of one group it is that.

    Each group has an endless list of its own, so none of its samples is left out of its epochs. In
    N samples' time, the e-th time, a group of n gets floor((e+1) n/B) - floor(e n/B) batches of B:
    those that its list can fill by then. What does not fill one is carried over, not dropped. The
    groups take turns in an order keyed by (seed, e). All this is a function of the iteration.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], cut: Cut, seed: int, first: int, last: int
    ) -> None:
        self.groups, self.cut = groups, cut
        self.seed, self.first, self.last = seed, first, last
        # the first group's list is that of ShardedOrder, the others' are independent of it
        seeds = [seed, *(key(seed, "group", g) for g in range(1, len(groups)))]
        self._lists = [
            ShardedOrder(len(group), cut, s, first, last)
            for group, s in zip(groups, seeds, strict=True)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        for group, turn in self._turns():
            begin, order = turn * self.cut.batch_size, self._lists[group]
            for micro in self.cut.micro:
                places = (order.index_at(begin + place) for place in self.cut.places(micro))
                yield [self.groups[group][i] for i in places]

    def __len__(self) -> int:
        return max(0, self.last - self.first) * len(self.cut.micro)

    def _turns(self) -> Iterator[tuple[int, int]]:
        """For each iteration its group, and how many batches that has had before."""
        epoch = self.first * self.cut.batch_size // sum(map(len, self.groups))
        iteration = sum(self._batches(epoch))
        while iteration < self.last:
            turns = self._batches(epoch)
            per_group = zip(turns, self._batches(epoch + 1), strict=True)
            mixed = [g for g, (begin, end) in enumerate(per_group) for _ in range(begin, end)]
            generator = torch.Generator().manual_seed(key(self.seed, "turns", epoch))
            for place in torch.randperm(len(mixed), generator=generator).tolist():
                if self.first <= iteration < self.last:
                    yield mixed[place], turns[mixed[place]]
                turns[mixed[place]] += 1
                iteration += 1
            epoch += 1

    def _batches(self, epoch: int) -> list[int]:
        """How many each group has had before an epoch."""
        return [epoch * len(group) // self.cut.batch_size for group in self.groups]
