"""What ``fit`` reads, and how it is fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..conditioning import ConditionDropout, Conditioning
from ..draws import Draws
from ..errors import StepDistillError
from .orders import Cut as Cut
from .orders import GroupedOrder
from .orders import ShardedOrder as ShardedOrder

Sample = tuple[Tensor | None, Conditioning]


class Data(Protocol):
    """A finite set of samples: ``fetch`` gives x0 (B, *) or None, and the conditioning."""

    def __len__(self) -> int: ...

    def fetch(self, indices: list[int]) -> Sample: ...


@runtime_checkable
class GroupedData(Data, Protocol):
    """Data whose samples have several shapes: ``groups`` are the indices that batch together."""

    @property
    def groups(self) -> tuple[Sequence[int], ...]: ...


@runtime_checkable
class PairedData(Data, Protocol):
    """Data whose x0 may be a teacher's own sample, from the noise ``z`` (B, *) that it gives."""

    def noise(self, indices: list[int]) -> Tensor | None: ...


@runtime_checkable
class ToldData(Data, Protocol):
    """Data that may know the prompts of its samples, "" where one is told nothing."""

    def texts(self, indices: list[int]) -> Sequence[str] | None: ...


@dataclass(frozen=True)
class TensorData:
    """Samples held in memory; ``z`` is the noise that each x0 was made from, if one was, and
    ``prompts`` what each was told by, if that is known."""

    x0: Tensor | None
    cond: Conditioning
    z: Tensor | None = None
    prompts: Sequence[str] | None = None

    def __len__(self) -> int:
        return self.cond.batch_size

    def fetch(self, indices: list[int]) -> Sample:
        """The samples at ``indices``."""
        index = torch.tensor(indices)
        return None if self.x0 is None else self.x0[index], self.cond.select(index)

    def noise(self, indices: list[int]) -> Tensor | None:
        """The z of the samples at ``indices``."""
        return None if self.z is None else self.z[torch.tensor(indices)]

    def texts(self, indices: list[int]) -> list[str] | None:
        """The prompts of the samples at ``indices``."""
        return None if self.prompts is None else [self.prompts[index] for index in indices]


class Read(NamedTuple):
    """What is read of a micro-batch."""

    x0: Tensor | None
    cond: Conditioning
    z: Tensor | None
    texts: tuple[str, ...] | None = None


class _Fetch(Dataset[Any]):
    def __init__(self, data: Data, texts: bool) -> None:
        self.data, self.texts = data, texts

    def __getitem__(self, indices: list[int]) -> Read | StepDistillError:
        try:
            z = self.data.noise(indices) if isinstance(self.data, PairedData) else None
            return Read(*self.data.fetch(indices), z, self._told(indices))
        except StepDistillError as error:
            return error  # raised by the reader: torch would hide it in a worker's traceback

    def _told(self, indices: list[int]) -> tuple[str, ...] | None:
        if not self.texts or not isinstance(self.data, ToldData):
            return None
        found = self.data.texts(indices)
        return None if found is None else tuple(found)


def order_of(data: Data, cut: Cut, seed: int, first: int, last: int) -> ShardedOrder | GroupedOrder:
    """The order of the data's samples, by groups if it has some."""
    if isinstance(data, GroupedData):
        return GroupedOrder(data.groups, cut, seed, first, last)
    return ShardedOrder(len(data), cut, seed, first, last)


def micro_batches(
    data: Data, order: ShardedOrder | GroupedOrder, workers: int = 0, texts: bool = False
) -> Iterator[Read]:
    """One micro-batch of ``order`` at a time, read by ``workers`` processes ahead; prompts, where
    the data knows them, only with ``texts``."""
    fetch = _Fetch(data, texts)
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
    z: Tensor | None = None
    texts: tuple[str, ...] | None = None

    def to(self, device: torch.device) -> Micro:
        """Move it to ``device``."""
        x0 = None if self.x0 is None else self.x0.to(device, non_blocking=True)
        z = None if self.z is None else self.z.to(device, non_blocking=True)
        return self._replace(x0=x0, cond=self.cond.to(device), z=z)

    def untold(self, dropout: ConditionDropout, draws: Draws) -> Micro:
        """With some of its samples told nothing."""
        keep = dropout.keeps(self.cond.batch_size, draws)
        texts = self.texts
        if texts is not None:
            texts = tuple(own if kept else "" for own, kept in zip(texts, keep, strict=True))
        return self._replace(cond=dropout.hidden(self.cond, keep), texts=texts)


def global_batches(
    data: Data,
    cut: Cut,
    seed: int,
    first: int,
    last: int,
    workers: int = 0,
    dropout: ConditionDropout | None = None,
    texts: bool = False,
) -> Iterator[list[Micro]]:
    """This rank's micro-batches of the iterations ``first`` + 1 to ``last``; ``texts`` as above.

    ``dropout`` draws by iteration and shard: all losses of an iteration are told the same.
    """
    order = order_of(data, cut, seed, first, last)
    loaded = micro_batches(data, order, workers, texts)
    for iteration in range(first + 1, last + 1):
        batch = [Micro(shards, *next(loaded)) for shards in cut.micro]
        if dropout is not None:
            draws = [Draws(seed, iteration, "condition", micro.shards) for micro in batch]
            batch = [m.untold(dropout, own) for m, own in zip(batch, draws, strict=True)]
        yield batch
