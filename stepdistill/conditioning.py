"""What a sample is conditioned on, as an opaque record: methods carry it and never look inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import Draws
from .errors import UserError


class Conditioning(Mapping[str, Tensor]):
    """Named tensors that share their first (batch) dimension, made by a backbone's adapter.

    An unconditional model takes ``Conditioning.empty(batch_size)``.
    """

    def __init__(self, tensors: Mapping[str, Tensor], batch_size: int | None = None) -> None:
        sizes = {len(value) for value in tensors.values()}
        if batch_size is not None:
            sizes.add(batch_size)
        if len(sizes) != 1:
            raise ValueError(f"conditioning tensors disagree on the batch size: {sorted(sizes)}")
        self._tensors = dict(tensors)
        self.batch_size = sizes.pop()

    @classmethod
    def empty(cls, batch_size: int) -> Conditioning:
        """The conditioning of an unconditional model."""
        return cls({}, batch_size)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate along the batch."""
        names = parts[0].keys()
        tensors = {name: torch.cat([part[name] for part in parts]) for name in names}
        return Conditioning(tensors, sum(part.batch_size for part in parts))

    def select(self, index: Tensor | slice) -> Conditioning:
        """The samples at ``index``."""
        device = index.device if isinstance(index, Tensor) else None
        count = len(torch.arange(self.batch_size, device=device)[index])
        return Conditioning({name: value[index] for name, value in self.items()}, count)

    def expand(self, batch_size: int) -> Conditioning:
        """Repeat a conditioning of one sample (the null conditioning) ``batch_size`` times."""
        tensors = {k: v.expand(batch_size, *v.shape[1:]) for k, v in self.items()}
        return Conditioning(tensors, batch_size)

    def replace(self, other: Conditioning) -> Conditioning:
        """With the tensors of ``other`` added, or in place of its own."""
        return Conditioning({**self._tensors, **other}, self.batch_size)

    def where(self, mask: Tensor, other: Conditioning) -> Conditioning:
        """``self`` where ``mask`` (B,) is true, ``other`` elsewhere: condition dropout.

        What ``other`` does not have, such as an image's size, stays.
        """
        picked = dict(self._tensors)
        for name, value in self.items():
            if name not in other:
                continue
            keep = mask.to(value.device).reshape(-1, *([1] * (value.ndim - 1)))
            picked[name] = torch.where(keep, value, other[name].to(value.device))
        return Conditioning(picked, self.batch_size)

    def equals(self, other: Conditioning) -> Tensor:
        """Which samples (B,) are told exactly what ``other``, of one sample, is told."""
        same = [
            (value == other[name].to(value.device)).reshape(self.batch_size, -1).all(1)
            for name, value in self.items()
        ]
        return torch.stack(same).all(0)

    def to(self, device: torch.device | str) -> Conditioning:
        """Move every tensor to ``device``."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.items()}
        return Conditioning(moved, self.batch_size)

    def cast(self, dtype: torch.dtype) -> Conditioning:
        """Its floating tensors in ``dtype``; labels and masks stay as they are."""
        other = {k: v for k, v in self.items() if v.is_floating_point() and v.dtype != dtype}
        if not other:
            return self
        cast = {k: v.to(dtype) for k, v in other.items()}
        return Conditioning({**self._tensors, **cast}, self.batch_size)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class ConditionDropout:
    """Shows ``null_cond``, of one sample, in place of a sample's own with ``probability``.

    A model that has learnt both can be guided (Ho and Salimans 2022, arXiv:2207.12598). UserError
    for a probability outside [0, 1].
    """

    probability: float
    null_cond: Conditioning

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"condition_dropout must lie in [0, 1], got {self.probability}")

    def __call__(self, cond: Conditioning, draws: Draws) -> Conditioning:
        """``cond`` with some of its samples untold."""
        return self.hidden(cond, self.keeps(cond.batch_size, draws))

    def keeps(self, count: int, draws: Draws) -> Tensor:
        """Which of ``count`` samples are told what they are, (count,)."""
        return draws.uniform(count) > self.probability

    def hidden(self, cond: Conditioning, keep: Tensor) -> Conditioning:
        """``cond`` where ``keep`` is true, untold elsewhere."""
        return cond.where(keep, self.null_cond.expand(cond.batch_size))


def padded(rows: Tensor, length: int) -> Tensor:
    """(B, tokens, *) with zeros behind, or cut, to ``length`` tokens."""
    missing = length - rows.shape[1]
    if missing <= 0:
        return rows[:, :length]
    return torch.cat([rows, rows.new_zeros(len(rows), missing, *rows.shape[2:])], dim=1)
