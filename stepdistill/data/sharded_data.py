"""Reading precomputed samples: of the shards, mapped into memory, only the asked rows."""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import UserError
from .shards import BESIDE, CONDITION, Shard, check_shards, opened, read_header, read_index

Version = tuple[Path, int]  # a file and when it was written: a new one is opened anew


@dataclass(frozen=True)
class ShardedData:
    """The samples of a folder, in the order they were written. ``names`` are those of its tensors.

    ``made_from`` is what the writer was told, ``left_out`` names the inputs without a sample.
    """

    folder: Path
    shards: tuple[Shard, ...]
    made_from: dict[str, Any]
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors: x0, cond.NAME, extras."""
        return tuple(self.shards[0].dtypes)

    @property
    def groups(self) -> tuple[Sequence[int], ...]:
        """The indices by the shapes of their samples: a batch is of one group."""
        by_shape: dict[str, list[range]] = defaultdict(list)
        for shard, begin, end in zip(self.shards, self._starts, self._starts[1:], strict=False):
            by_shape[repr(shard.shapes)].append(range(begin, end))
        return tuple(_chained(ranges) for ranges in by_shape.values())

    def fetch(self, indices: list[int]) -> tuple[Tensor | None, Conditioning]:
        """x0, if the folder holds any, and the conditioning; ``indices`` are of one group."""
        names = [name for name in self.names if name == "x0" or name.startswith(CONDITION)]
        found = self.fetch_named(indices, names)
        x0 = found.pop("x0", None)
        cond = {name.removeprefix(CONDITION): value for name, value in found.items()}
        return x0, Conditioning(cond, len(indices))

    def noise(self, indices: list[int]) -> Tensor | None:
        """The z of noise-image pairs, None if the folder holds none."""
        return self.fetch_named(indices, ["z"])["z"] if "z" in self.names else None

    def fetch_named(self, indices: list[int], names: Sequence[str]) -> dict[str, Tensor]:
        """The rows of the tensors ``names``; UserError for one that the folder does not hold."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise UserError(
                f"{self.folder} holds {', '.join(self.names)}, and no {missing[0]}: precompute it "
                "with that"
            )
        return {name: self._rows(name, indices) for name in names}

    def beside(self) -> dict[str, Tensor]:
        """The tensors that are of no sample, by name."""
        path = self.folder / BESIDE
        if not path.exists():
            return {}
        with opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def texts(self, indices: list[int]) -> list[str]:
        """What was written beside the samples, such as their captions."""
        found = []
        for index in indices:
            shard, row = self._place(index)
            found.append(_texts(self._version(shard))[row])
        return found

    def describe(self) -> str:
        """In a sentence: how many samples, of what, and what was left out."""
        shapes = {name: [*map(str, shape)] for name, shape in self.shards[0].shapes.items()}
        many = f" and {len(self.groups) - 1} other shapes" if len(self.groups) > 1 else ""
        parts = [f"{k} {'x'.join(v) or '1'} {self.shards[0].dtypes[k]}" for k, v in shapes.items()]
        sentence = f"{len(self):,} samples in {self.folder} ({', '.join(parts)}{many})"
        if self.left_out:
            shown = [*self.left_out[:3], *(["..."] if len(self.left_out) > 3 else [])]
            sentence += f"; {len(self.left_out)} left out: {', '.join(shown)}"
        return sentence

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(shard.samples for shard in self.shards)]

    def _place(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"no sample {index} among {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _version(self, shard: int) -> Version:
        path = self.folder / self.shards[shard].file
        try:
            return path, path.stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def _rows(self, name: str, indices: list[int]) -> Tensor:
        """(len(indices), *): shard by shard, then back into their order."""
        places: dict[int, list[int]] = defaultdict(list)
        rows: dict[int, list[int]] = defaultdict(list)
        for place, index in enumerate(indices):
            shard, row = self._place(index)
            places[shard].append(place)
            rows[shard].append(row)
        parts = [
            _mapped(self._version(shard)).get_tensor(name)[torch.tensor(rows[shard])]
            for shard in places
        ]
        order = torch.tensor(list(itertools.chain.from_iterable(places.values())))
        return torch.cat(parts)[order.argsort()]


def load_shards(folder: str | Path) -> ShardedData:
    """The samples in ``folder``; UserError if it is not complete, or a shard is not whole."""
    folder = Path(folder)
    index = read_index(folder)
    check_shards(folder, index)
    shards = tuple(Shard(**shard) for shard in index["shards"])
    return ShardedData(folder, shards, index["made_from"], tuple(index["left_out"]))


@functools.lru_cache(maxsize=256)
def _mapped(version: Version) -> Any:
    return opened(version[0])


@functools.lru_cache(maxsize=256)
def _texts(version: Version) -> list[str]:
    texts: list[str] = read_header(version[0])["texts"]
    return texts


def _chained(ranges: list[range]) -> Sequence[int]:
    """One range if they follow each other, else a list."""
    if all(a.stop == b.start for a, b in itertools.pairwise(ranges)):
        return range(ranges[0].start, ranges[-1].stop)
    return list(itertools.chain.from_iterable(ranges))
