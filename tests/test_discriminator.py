"""The GAN head can tell things apart: its logits depend on the features, and it learns."""

from __future__ import annotations

import pytest
import torch

from stepdistill.discriminator import Head
from stepdistill.losses import gan_discriminator


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(32, 4, 4), (32, 8, 8), (1280, 8, 8), (64, 32, 32), (16, 32), (24,)], ids=str
)
def test_head_learns_to_tell_two_features_apart(shape: tuple[int, ...]) -> None:
    """Logits of different features differ, and a few steps bring the loss well below 2 log 2.

    A norm over groups of one number is identically zero and would leave the loss there.
    """
    torch.manual_seed(0)
    head = Head([shape], width=32)
    fake, real = torch.randn(8, *shape), torch.randn(8, *shape) + 0.5
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    with torch.no_grad():
        assert head((fake,)).std() > 1e-3
    for _ in range(40):
        loss = gan_discriminator(head((fake,)), head((real,))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


@pytest.mark.parametrize("width", [32, 64, 512, 1280])
def test_head_has_its_published_form(width: int) -> None:
    """On an 8x8 feature: a stride-2 and a 4x4 convolution, then 1x1, 32 groups where they fit."""
    stack = Head([(width, 8, 8)]).stacks[0]
    convolutions = [m for m in stack if isinstance(m, torch.nn.Conv2d)]
    assert [(m.kernel_size[0], m.stride[0]) for m in convolutions] == [(4, 2), (4, 1), (1, 1)]
    norms = [m for m in stack if isinstance(m, torch.nn.GroupNorm)]
    assert all(m.num_channels // m.num_groups >= 4 for m in norms)
    if width >= 512:
        assert all(m.num_groups == 32 for m in norms)
