"""Randomness as a function of (seed, iteration, purpose, global shard).

The global batch is cut into a fixed number of shards, and each rank and micro-batch takes whole
shards. So batch 16, two accumulated micro-batches of 8 and two ranks of 8 are the same run, and a
resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import UserError

SEEDS = 2**62


def check_seed(seed: int) -> None:
    """UserError for a number that torch takes no seed from, with room for those that follow it."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed must lie in 0 to {SEEDS - 1}, got {seed}")


def key(*parts: object) -> int:
    """A 63-bit number from ``parts``, the same in every process (unlike ``hash``)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators that a network on ``device`` draws from.

    As torch.manual_seed, which takes milliseconds where torch knows devices that are not there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class Draws:
    """The random numbers of one loss on one (micro-)batch.

    ``shards`` are the global numbers of the shards that make up this batch, in order. The n-th
    call draws the n-th numbers of each shard's stream; ``shared_index`` does not depend on shards.
    """

    def __init__(
        self,
        seed: int,
        iteration: int,
        purpose: str,
        shards: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed, self.iteration, self.purpose = seed, iteration, purpose
        self.shards, self.device = tuple(shards), torch.device(device)
        self._calls = 0

    def normal_like(self, x: Tensor) -> Tensor:
        """N(0, I) of the shape and dtype of ``x`` (B, *)."""
        return self.normal(*x.shape, dtype=x.dtype)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """N(0, I) of ``shape`` (B, *), by default of torch's default dtype."""
        size = (self._share(shape[0]), *shape[1:])
        return torch.cat(
            [torch.randn(size, generator=g, device=self.device, dtype=dtype) for g in self._next()]
        )

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U(low, high], float64 (n,)."""
        u = torch.cat(
            [
                torch.rand(self._share(n), generator=g, device=self.device, dtype=torch.float64)
                for g in self._next()
            ]
        )
        return high - (high - low) * u

    def shared_index(self, n: int) -> int:
        """An integer in [0, n), the same on every rank and micro-batch: an exit step, a phase."""
        self._calls += 1
        return key(self.seed, self.iteration, self.purpose, "shared", self._calls) % n

    def _share(self, n: int) -> int:
        size, rest = divmod(n, len(self.shards))
        if rest:
            raise ValueError(f"a batch of {n} cannot be cut into {len(self.shards)} shards")
        return size

    def _next(self) -> list[torch.Generator]:
        self._calls += 1
        parts = (self.seed, self.iteration, self.purpose)
        return [
            torch.Generator(self.device).manual_seed(key(*parts, shard, self._calls))
            for shard in self.shards
        ]
