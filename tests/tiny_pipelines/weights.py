"""Random weights of a known scale, so that a tiny network listens to all of its inputs."""

from __future__ import annotations

import zlib

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


def with_random_weights(pipeline: DiffusionPipeline, seed: int) -> DiffusionPipeline:
    """The same pipeline with every weight drawn anew, a function of the seed and the names alone.

    The default initialisations (0.02, or zero for gates and last layers) leave a tiny network
    deaf to its prompt. Here each map keeps the variance of its input, gains lie around one,
    and no parameter is left at zero.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            number = zlib.crc32(f"{seed}/{name}".encode())  # a CPU generator reads 32 bits
            _randomise(part, torch.Generator().manual_seed(number))
            part.eval()
    return pipeline


@torch.no_grad()
def _randomise(network: nn.Module, draw: torch.Generator) -> None:
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    for weight in network.parameters():
        noise = torch.randn(weight.shape, generator=draw)
        if id(weight) in tables:
            weight.copy_(noise)
        elif bool((weight == 1).all()):  # the gain of a norm
            weight.copy_(1 + 0.1 * noise)
        elif weight.squeeze().ndim < 2:  # a bias, or a gain counted from one
            weight.copy_(0.1 * noise)
        else:
            weight.copy_(noise * _fan_in(weight) ** -0.5)


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()
