"""A small residual network for vectors: the student and critic of the exact 2-D teachers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..denoisers import Backbone


class MLP(nn.Module):
    """Vector (B, D), time (B,), optional class -> (B, D), through residual SiLU blocks.

    The time enters as sines and cosines of ``timestep * time_scale`` at frequencies 2^0 ... 2^7.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        num_class_embeds: int | None = None,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.inward = nn.Linear(dim, width)
        self.time = nn.Linear(16, width)
        self.label = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.outward = nn.Sequential(nn.SiLU(), last)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        frequency = 2.0 ** torch.arange(8, device=x.device, dtype=x.dtype) * math.pi / 8
        angle = timestep[:, None] * self.time_scale * frequency
        h = self.inward(x) + self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        if self.label is not None and class_labels is not None:
            h = h + self.label(class_labels)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.outward(h)
        return out


class VectorBackbone(Backbone):
    """:class:`MLP` behind the Backbone contract; its middle block is tapped."""

    def __init__(self, network: MLP) -> None:
        super().__init__(network)
        self.tap(network.blocks[len(network.blocks) // 2])

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(x, timestep, cond.get("class_labels"))
        return output
