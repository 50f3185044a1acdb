"""Several samples of one prompt, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...metrics.scorers.lpips_distance import ImageDistance
from ..running.work import NO_REPEAT, Shard

PROMPTS, EACH = 100, 4  # prompts, and samples of each
GROUP = "distance"  # of the column in a shard


@dataclass(frozen=True)
class Groups:
    """The prompts at ``places``, ``each`` sampled that often, with seeds after all others'.

    ``distance`` is of two images, ``last`` the last shard of the others.
    """

    places: Sequence[int]
    each: int
    distance: ImageDistance
    last: Shard

    def shards(self) -> list[Shard]:
        """One a prompt, of no repeat."""
        return [self._shard(i) for i in range(len(self.places))]

    def place(self, shard: Shard) -> int:
        """The place of a shard's prompt."""
        return self.places[shard.number - self.last.number - 1]

    def _shard(self, i: int) -> Shard:
        begin = self.last.end + i * self.each
        return Shard(self.last.number + 1 + i, NO_REPEAT, begin, begin + self.each)
