"""The GAN head can tell things apart: its logits depend on the features, and it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from test_families import load
from tiny import tiny_unet
from torch import nn

from stepdistill.backbones.pixel import PixelBackbone
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Denoiser, PredictsEDM
from stepdistill.discriminator import AllBlocks, Head, as_map
from stepdistill.losses import gan_discriminator
from stepdistill.schedules import EDMSchedule


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


def unet() -> Denoiser:
    """A tiny pixel U-Net; its middle is tapped."""
    torch.manual_seed(0)
    return Denoiser(PixelBackbone(tiny_unet()), EDMSchedule(), PredictsEDM()).eval()


def told(count: int) -> Conditioning:
    return Conditioning({"class_labels": torch.arange(count)})


def test_all_blocks_of_a_unet_are_seen_from_the_first_to_the_last() -> None:
    """Down, middle, up: the features are what each block gives, and x0_hat and the denoiser's own
    feature stay what they are."""
    denoiser = unet()
    network: nn.Module = denoiser.backbone.network
    blocks = [*network.down_blocks, network.mid_block, *network.up_blocks]
    given: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(
            lambda module, args, out: given.append(out[0] if isinstance(out, tuple) else out)
        )
    seen, inputs = AllBlocks(denoiser), (torch.randn(3, 1, 8, 8), torch.full((3,), 0.5), told(3))
    x0_hat, features = seen(*inputs, features=True)
    assert len(features) == len(blocks) == len(given)
    assert all(torch.equal(a, b) for a, b in zip(features, given, strict=True))
    alone = denoiser(*inputs, features=True)
    assert torch.equal(alone.x0_hat, x0_hat)
    (own,) = alone.features
    assert torch.equal(own, features[len(network.down_blocks)])
    assert seen(*inputs).features == ()


def test_all_blocks_of_a_transformer_are_its_list() -> None:
    """SD3's joint blocks give (text, image): the image's tokens are taken, as its tap does."""
    teacher = load("sd3")
    seen = AllBlocks(teacher.denoiser)
    x_t = torch.randn(2, *teacher.sample_shape)
    cond, t = teacher.encode(teacher.examples(2)), torch.full((2,), 0.5)
    features = seen(x_t, t, cond, features=True).features
    own = teacher.denoiser(x_t, t, cond, features=True).features[0]
    count = len(teacher.denoiser.backbone.network.transformer_blocks)
    assert len(features) == count
    patch = teacher.denoiser.backbone.network.config.patch_size
    rows, columns = (size // patch for size in teacher.sample_shape[1:])
    assert all(feature.shape == (2, own.shape[2], rows, columns) for feature in features)
    assert torch.equal(features[count // 2].flatten(2).transpose(1, 2), own)


def test_tokens_lie_where_their_patches_were() -> None:
    """Of a picture wider than high, row by row; what is no grid of square patches stays."""
    x_t = torch.randn(2, 1, 4, 12)
    cut = x_t.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 1, rows, columns, 2, 2)
    tokens = cut.flatten(4).squeeze(1).flatten(1, 2)
    laid = as_map(tokens, x_t)
    assert laid.shape == (2, 4, 2, 6)
    assert torch.equal(laid[:, 0], x_t[:, 0, ::2, ::2])
    assert torch.equal(laid[:, 3], x_t[:, 0, 1::2, 1::2])
    with_text, of_a_film = tokens[:, :11], torch.randn(2, 1, 3, 4, 12)
    assert as_map(with_text, x_t) is with_text
    assert as_map(tokens, of_a_film) is tokens
    assert as_map(laid, x_t) is laid


def test_two_trunks_over_one_denoiser_do_not_meddle() -> None:
    """Another trunk's taps are off while one is asked, and its own when the denoiser is asked by
    someone else; a copy has taps of its own."""
    denoiser = unet()
    first, second = AllBlocks(denoiser), AllBlocks(denoiser)
    twin = copy.deepcopy(first)
    inputs = (torch.randn(2, 1, 8, 8), torch.full((2,), 0.3), told(2))
    expected = first(*inputs, features=True).features
    assert all(tap.value is None for tap in second.taps)
    denoiser(*inputs)
    assert all(tap.value is None for tap in first.taps)
    for other in (second, twin):
        found = other(*inputs, features=True).features
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    again = first(*inputs, features=True).features
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
