"""Images decoded and prepared beside the network: in order, in blocks, in processes of their own.

A process makes whole blocks, which come back through shared memory, so that nothing but the network
is left to the one that asks. At most two blocks a process are under way. What is read does not
depend on how many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.images import CorruptImageError
from ...errors import StepDistillError, UserError, first_line
from ...metrics.features import Features, Pixels
from .archives import Pictures
from .images import is_transparent, pixels_of

FEW = 256  # images for which a process is not worth its start
AHEAD = 2  # blocks a process


@dataclass
class Block:
    """Consecutive images, prepared: one tensor (B, *) for each extractor."""

    inputs: list[Tensor]
    skipped: list[str] = field(default_factory=list)  # unreadable ones, left out
    transparent: int = 0  # whose alpha channel is not shown
    error: UserError | None = None  # of the first image that stops it all


@dataclass(frozen=True)
class Reader(Dataset[Block]):
    """What a process is given: the images, and how each extractor's input is made of one."""

    pictures: Pictures
    blocks: Sequence[Sequence[int]]
    seen: Sequence[tuple[str, Callable[[Pixels], Tensor]]]  # PIL's mode, and ``prepare``
    skip_corrupt: bool

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        """A block; an error of the user's is in it, not raised, to keep its sentence."""
        block = Block([])
        rows: list[list[Tensor]] = []
        for i in self.blocks[index]:
            try:
                image = self.pictures.open(i)
                block.transparent += is_transparent(image)
                rows.append(self._inputs(i, image, rows))
            except CorruptImageError as error:
                if not self.skip_corrupt:
                    return Block([], error=error)
                block.skipped.append(self.pictures.name(i))
            except UserError as error:
                return Block([], error=error)
        block.inputs = [torch.stack(own) for own in zip(*rows, strict=True)]
        return block

    def _inputs(self, index: int, image: Image.Image, before: list[list[Tensor]]) -> list[Tensor]:
        name = self.pictures.name(index)
        decoded: dict[str, Pixels] = {}
        inputs = []
        for mode, prepare in self.seen:
            if mode not in decoded:
                decoded[mode] = pixels_of(image, mode)
            try:
                inputs.append(prepare(decoded[mode]))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        for own, first in zip(inputs, before[0] if before else inputs, strict=True):
            _same_size(name, own, first)
        return inputs


def read(
    pictures: Pictures,
    indices: Sequence[int],
    extractors: Sequence[Features],
    batch_size: int,
    skip_corrupt: bool = False,
    workers: int | None = None,
) -> Iterator[Block]:
    """Blocks of ``batch_size`` images of ``indices``, in order, without those left out.

    Each image is decoded once, whatever the number of extractors. With one worker, or few images,
    a thread reads ahead. UserError for the first image that cannot be used, in their order.
    """
    begins = range(0, len(indices), batch_size)
    reader = Reader(
        pictures,
        [indices[begin : begin + batch_size] for begin in begins],
        [(features.mode, features.prepare) for features in extractors],
        skip_corrupt,
    )
    count = cores() if workers is None else workers
    apart = count > 1 and len(indices) > FEW
    first: Block | None = None
    for block in _by_processes(reader, count) if apart else _by_a_thread(reader):
        if block.error is not None:
            raise block.error
        if block.inputs:
            first = first or block
            for own, other in zip(block.inputs, first.inputs, strict=True):
                _same_size(f"an image of {pictures.path}", own[0], other[0])
        yield block


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _by_a_thread(reader: Reader) -> Iterator[Block]:
    """PIL leaves Python's lock while it decodes and resizes, and torch while it multiplies."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(reader.__getitem__, i) for i in range(min(AHEAD, len(reader)))]
        for i in range(len(reader)):
            block = waiting.pop(0).result()
            if i + AHEAD < len(reader):
                waiting.append(pool.submit(reader.__getitem__, i + AHEAD))
            yield block


def _by_processes(reader: Reader, workers: int) -> Iterator[Block]:
    loader = DataLoader(
        reader,
        batch_size=None,
        num_workers=min(workers, len(reader)),
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it draws a seed from the global one
        worker_init_fn=_give_way,
    )
    blocks = iter(loader)
    while True:
        try:
            block: Block = next(blocks)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise StepDistillError(
                f"a process that decodes images was ended ({first_line(error)}): memory, or "
                "shared memory (/dev/shm), ran out; give fewer --workers, or --workers 1"
            ) from error
        yield block


def _give_way(worker: int) -> None:
    """A network on the same cores goes first: the readers are ahead of it."""
    os.nice(10)


def _as_it_is(block: Any) -> Any:
    return block


def _same_size(name: str, own: Tensor, first: Tensor) -> None:
    if own.shape != first.shape:
        sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in (own, first)]
        raise UserError(
            f"{name} is {sizes[0]}, and the first is {sizes[1]}: this extractor does not resize, "
            "so give images of one size, or --size"
        )
