"""Exponential moving average of a role's trainable weights, by half-life."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .roles import Role


class EMA:
    """w_ema <- beta w_ema + (1 - beta) w with beta = 0.5^(images / half_life).

    ``half_life`` is counted in images, as EDM's (Karras et al. 2022, training_loop), and ramps up:
    it is at most ``rampup`` times the images seen, so that the start is forgotten. Tensors are kept
    by name; only trainable ones, so a LoRA role costs its adapters alone.
    """

    def __init__(self, role: Role, half_life: float, rampup: float = 0.05) -> None:
        self.role, self.half_life, self.rampup = role, half_life, rampup
        self.weights = {k: p.detach().clone() for k, p in role.trainable().items()}

    @torch.no_grad()
    def update(self, images: int, images_seen: int) -> None:
        """After an update on ``images``; ``images_seen`` counts them and all before."""
        half_life = min(self.half_life, self.rampup * images_seen)
        beta = 0.5 ** (images / max(half_life, 1e-8))
        live: list[Tensor] = list(self.role.trainable().values())
        torch._foreach_lerp_(list(self.weights.values()), live, 1 - beta)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The role carries the average inside; its own weights are restored bit for bit after."""
        live = self.role.trainable()
        own = {name: p.detach().clone() for name, p in live.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.role.trainable().items():
            parameter.copy_(weights[name])
