"""Writing precomputed samples so that a kill costs one shard at most.

A shard is written as ``.partial``, flushed and renamed; the index comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NonFiniteError, StepDistillError, UserError
from ..files import differences, flush, hold
from .shards import (
    BESIDE,
    HEADER,
    INDEX,
    LOCK,
    OURS,
    PARTIAL,
    SHARD,
    Shard,
    check_shards,
    describe_shard,
    read_header,
    read_index,
)


class ShardWriter:
    """Takes samples one by one while entered, and goes on after the last whole shard.

    An *input* is what one sample is made from; inputs come in a fixed order, and each is settled by
    ``add`` or ``leave_out``. ``made_from`` is what the samples depend on (the model, the source,
    the resolution): UserError if the folder holds samples made from something else. The folder at
    the end is the same to the last bit however often the writing was cut off.

    ``beside`` are tensors that are of no sample, written once. A folder that ``grows`` can be gone
    on with after it is finished, as if it had never been: its inputs are of one shape, and one more
    changes none of the others.
    """

    def __init__(
        self,
        folder: str | Path,
        made_from: Mapping[str, Any],
        shard_size: int = 1000,
        beside: Mapping[str, Tensor] | None = None,
        grows: bool = False,
    ) -> None:
        if shard_size < 1:
            raise UserError(f"shard_size must be at least 1, got {shard_size}")
        self.folder, self.shard_size = Path(folder), shard_size
        self.beside, self.grows = dict(beside or {}), grows
        self.made_from = json.loads(
            json.dumps({**made_from, "shard_size": shard_size}, default=str)
        )
        self.shards: list[Shard] = []
        self.position = 0  # inputs settled
        self.left_out: list[str] = []
        self.finished = False
        self._samples: list[dict[str, Tensor]] = []
        self._texts: list[str] = []
        self._left_out: list[str] = []  # of them, those since the last shard

    def __enter__(self) -> ShardWriter:
        self._check_ours()
        self._lock = hold(self.folder / LOCK)
        try:
            self._go_on()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def batches(self, ends: Sequence[int], size: int) -> Iterator[range]:
        """The inputs that are not settled, up to ``size`` at a time, each to settle in its turn.

        No batch goes over an end of ``ends`` (the groups of one shape) or of a shard, so that a
        resumed run makes the same batches: a network's last bits depend on them.
        """
        if size < 1:
            raise UserError(f"batch_size must be at least 1, got {size}")
        for end in ends:
            while self.position < end:
                room = self.shard_size - len(self._samples)
                batch = range(self.position, min(end, self.position + min(size, room)))
                yield batch
                if self.position != batch.stop:
                    raise ValueError(f"{self.position} inputs are settled, not {batch.stop}")
            self._close()

    def add(self, tensors: Mapping[str, Tensor], text: str = "") -> None:
        """Settle an input by its sample (no batch dimension); ``text`` is kept, such as a caption.

        NonFiniteError for NaN or Inf. Another shape than before begins a new shard.
        """
        # copied: a view would keep its whole batch
        sample = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        for name, value in sample.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NonFiniteError(
                    f"NaN or Inf in {name} of input {self.position} ({text[:80]!r}): encode in "
                    "bfloat16 or float32 instead of float16, or look at that input"
                )
        if self._samples and _shapes(sample) != _shapes(self._samples[0]):
            self._close()
        self._samples.append(sample)
        self._texts.append(text)
        self.position += 1
        if len(self._samples) == self.shard_size:
            self._close()

    def leave_out(self, name: str) -> None:
        """Settle an input that gives no sample, such as a corrupt image; the index names it."""
        self.left_out.append(name)
        self._left_out.append(name)
        self.position += 1

    def reopen(self) -> None:
        """Go on with a finished folder that grows: its last shard, if it is not full, goes."""
        (self.folder / INDEX).unlink()
        self.shards, self.position, self.left_out, self.finished = [], 0, [], False
        self._go_on()

    def finish(self) -> None:
        """Write the last shard and the index. UserError if there is no sample."""
        self._close()
        if not self.shards:
            raise UserError(f"none of {self.position} inputs gave a sample for {self.folder}")
        beside = self.folder / BESIDE
        index = {
            "beside": beside.stat().st_size if beside.exists() else 0,
            "inputs": self.position,
            "samples": sum(shard.samples for shard in self.shards),
            "left_out": self.left_out,
            "made_from": self.made_from,
            "shards": [asdict(shard) for shard in self.shards],
        }
        with self._whole(INDEX) as partial:
            partial.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        self.finished = True

    def _close(self) -> None:
        """Write the shard of the samples since the last one."""
        if not self._samples:
            return
        header = {
            "inputs": self.position,
            "left_out": self._left_out,
            "made_from": self.made_from,
            "texts": self._texts,
        }
        name = f"{len(self.shards):05d}.safetensors"
        stacked = {key: torch.stack([s[key] for s in self._samples]) for key in self._samples[0]}
        with self._whole(name) as partial:
            save_file(stacked, partial, {HEADER: json.dumps(header, sort_keys=True)})
            self._take(replace(describe_shard(partial), file=name))
        self._samples, self._texts, self._left_out = [], [], []

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[Path]:
        """Write the given path, and it becomes ``name`` whole or not at all."""
        final = self.folder / name
        partial = self.folder / (name + PARTIAL)
        try:
            yield partial
            flush(partial)
            os.replace(partial, final)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StepDistillError(
                f"could not write {final}: {error}. The {len(self.shards)} shards before it are "
                "whole; free some disk space and run the same command again"
            ) from error

    def _take(self, shard: Shard) -> None:
        """List a shard; ValueError if it is not like the others."""
        if self.shards and shard.kind != self.shards[0].kind:
            raise ValueError(
                f"{shard.file} differs from {self.shards[0].file} in names, dtypes or the shape of "
                f"the conditioning: {shard.kind} and {self.shards[0].kind}"
            )
        self.shards.append(shard)

    def _go_on(self) -> None:
        """Find the whole shards of an earlier writing; a torn file is written over."""
        names = [path.name for path in self.folder.iterdir()]
        if INDEX in names:
            index = read_index(self.folder)
            self._check_made_from(index["made_from"], INDEX)
            check_shards(self.folder, index)
            self.shards = [Shard(**shard) for shard in index["shards"]]
            self.position, self.left_out = index["inputs"], index["left_out"]
            self.finished = True
            return
        if self.beside:
            with self._whole(BESIDE) as partial:
                save_file(self.beside, partial)
        found = sorted((n for n in names if SHARD.fullmatch(n)), key=lambda n: (len(n), n))
        for number, name in enumerate(found):
            if int(name.partition(".")[0]) != number:
                raise UserError(
                    f"{self.folder} has {name} but no {number:05d}.safetensors: bring that back, "
                    "or remove the later ones"
                )
            header = read_header(self.folder / name)
            self._check_made_from(header["made_from"], name)
            if self.grows and describe_shard(self.folder / name).samples < self.shard_size:
                return  # cut off by an end that has moved: it is written anew
            self._take(describe_shard(self.folder / name))
            self.position = header["inputs"]
            self.left_out += header["left_out"]

    def _check_ours(self) -> None:
        """UserError if the folder holds something else; nothing is put beside it."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        strange = sorted(path.name for path in found if not OURS.fullmatch(path.name))
        if strange:
            raise UserError(
                f"{self.folder} holds {strange[0]}, which is no precomputed sample: give another "
                "folder"
            )

    def _check_made_from(self, made_from: Mapping[str, Any], name: str) -> None:
        if made_from != self.made_from:
            changed = differences(made_from, self.made_from)
            raise UserError(
                f"{self.folder / name} was made from something else ({changed}): give the same "
                "settings, or another folder"
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
