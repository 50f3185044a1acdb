"""Means over batches, bin by bin, that a loss normalises by: the same however a batch is cut.

What is added in an iteration counts from the next one on: sums are folded once the update is done,
over all micro-batches and ranks at once, so that no loss waits for another rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RunningMeans:
    """``means`` (bins,), 1 until something was seen; kept in checkpoints by ``fit``.

    Folding an iteration's mean m gives mean <- decay mean + (1 - decay) m, for bins that have seen
    something; a bin's first iterations are averaged evenly, until ``decay`` is reached.
    """

    def __init__(self, bins: int, decay: float) -> None:
        self.decay = decay
        self.means = torch.ones(bins, dtype=torch.float32)
        self.folds = torch.zeros(bins, dtype=torch.float32)
        self._sums: Tensor | None = None  # (2, bins): of values, and how many

    def at(self, index: Tensor) -> Tensor:
        """The means of bins ``index`` (B,)."""
        return self._on(index.device)[index]

    def add(self, values: Tensor, index: Tensor) -> None:
        """Count ``values`` (B,) in bins ``index`` (B,)."""
        self._on(values.device)
        if self._sums is None:
            self._sums = self.means.new_zeros(2, len(self.means))
        seen = torch.stack([values.detach().float(), torch.ones_like(values).float()])
        self._sums.index_add_(1, index, seen)

    def fold(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take what was added into the means; ``reduce`` sums over ranks."""
        if self._sums is None:
            return
        (sums, counts), self._sums = reduce(self._sums), None
        seen = counts > 0
        decay = (self.folds / (self.folds + 1)).clamp(max=self.decay)
        mean = decay * self.means + (1 - decay) * sums / counts.clamp(min=1)
        self.means.copy_(torch.where(seen, mean, self.means))
        self.folds.add_(seen.float())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, live."""
        return {"means": self.means, "folds": self.folds}

    def _on(self, device: torch.device) -> Tensor:
        if self.means.device != device:
            self.means, self.folds = self.means.to(device), self.folds.to(device)
        return self.means
