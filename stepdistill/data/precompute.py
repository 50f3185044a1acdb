"""Encode inputs once, in batches, into shards that any number of trainings read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from .estimate import check_room, spoken_time
from .shard_writer import ShardWriter

TIMED = 3  # batches after the first, which warms up, before the time left is told


class Encoded(NamedTuple):
    """The tensors of one sample by name (no batch dimension), and the text to keep beside."""

    tensors: Mapping[str, Tensor]
    text: str = ""


class LeftOut(NamedTuple):
    """An input that gives no sample, by name: a corrupt image, on request."""

    name: str


Encode = Callable[[range], Sequence[Encoded | LeftOut]]


def precompute(writer: ShardWriter, encode: Encode, ends: Sequence[int], batch_size: int) -> None:
    """Settle the inputs 0 to ``ends[-1]`` and finish the folder of ``writer``, which is entered.

    ``encode`` gives a result for each input of a batch; batches follow each other from
    ``writer.position`` on and cross no end in ``ends``. A finished folder that grows takes more
    inputs. UserError if the disk is too small, told from the first batch and before anything is
    written, or if the folder has other inputs.
    """
    total = ends[-1] if ends else 0
    if writer.finished and writer.grows and writer.position < total:
        writer.reopen()
    if writer.position > total or (writer.finished and writer.position < total):
        raise UserError(
            f"{writer.folder} was made from {writer.position:,} inputs, and there are {total:,} "
            "now: give the same ones, or another folder"
        )
    if writer.finished:
        return
    room, began, timed = False, 0.0, 0
    with tqdm(total=total, initial=writer.position, unit="sample", disable=None) as bar:
        for number, batch in enumerate(writer.batches(ends, batch_size)):
            results = encode(batch)
            sizes = [_bytes(result) for result in results if isinstance(result, Encoded)]
            if sizes and not room:
                each = sum(sizes) / len(sizes)
                said = check_room(writer.folder, total - batch.start, each)
                _tell(f"{writer.folder}: {said}")
                room = True
            for result in results:
                if isinstance(result, Encoded):
                    writer.add(result.tensors, result.text)
                else:
                    writer.leave_out(result.name)
            bar.update(len(batch))
            if number == 0:
                began, timed = time.perf_counter(), batch.stop
            elif number == TIMED:
                pace = (time.perf_counter() - began) / (batch.stop - timed)
                _tell(f"about {spoken_time(pace * (total - batch.stop))} left")
    writer.finish()


def _bytes(encoded: Encoded) -> int:
    tensors = sum(value.numel() * value.element_size() for value in encoded.tensors.values())
    return tensors + len(encoded.text.encode())


def _tell(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
