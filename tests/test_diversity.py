"""Diversity: pairs counted by hand, and LPIPS against its authors' package and torchmetrics."""

from __future__ import annotations

import math
import sys
from itertools import combinations
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from tiny_clips import smooth
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import alexnet

from stepdistill.errors import UserError
from stepdistill.metrics.diversity import diversity, mean_over_pairs, pairwise_distance
from stepdistill.metrics.scorers.lpips_distance import (
    BACKBONE,
    LEAST,
    ImageDistance,
    alexnet_lpips,
    lpips_distance,
)


def apart(images: Tensor, others: Tensor) -> Tensor:
    return (images - others).abs().flatten(1).sum(1)


def test_every_pair_counts_once() -> None:
    """0, 1 and 3 lie 1, 3 and 2 apart: 2 on average; a group of equal images has no diversity."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    assert mean_over_pairs(apart, line) == 2
    assert diversity(apart, [line, line[:2], torch.ones(5, 1)]).tolist() == [2, 1, 0]
    assert math.isnan(mean_over_pairs(apart, line[:1]))


def test_pairs_do_not_depend_on_the_batch() -> None:
    images = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    at_once = mean_over_pairs(apart, images, batch_size=64)
    for batch_size in (1, 7):
        assert mean_over_pairs(apart, images, batch_size) == at_once
    by_hand = [float(apart(images[[i]], images[[j]])) for i, j in combinations(range(9), 2)]
    assert float(at_once) == pytest.approx(np.mean(by_hand), rel=1e-12)


def test_distance_of_features_within_groups() -> None:
    """Corners of a 3-4-5 triangle, picked by a mask, a slice and places; one row alone is NaN."""
    features = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
    mask = torch.tensor([True, True, True, False])
    groups = [mask, slice(0, None, 2), torch.tensor([3, 3]), torch.tensor([1])]
    distances = pairwise_distance(features, groups)
    assert distances.dtype == torch.float64
    assert distances[:3].tolist() == [4, 5, 0]
    assert distances[3].isnan()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where torchvision keeps its own, under their name."""
    folder = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet().state_dict().items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}  # quick for the classifier
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.startswith("features"):
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    torch.save(state, folder / BACKBONE.file)
    return folder / BACKBONE.file


@pytest.fixture(scope="module")
def distance(backbone: Path) -> ImageDistance:
    return alexnet_lpips(backbone)


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
def test_lpips_of_its_authors(
    backbone: Path, distance: ImageDistance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pairs of a folder as their program takes them; torchmetrics' agrees to its epsilon."""
    monkeypatch.setenv("TORCH_HOME", str(backbone.parent.parent.parent))
    network = lpips.LPIPS(net="alex", version="0.1", verbose=False)
    images = [smooth((64, 48), seed) for seed in range(4)]
    theirs = [lpips.im2tensor(pixels) for pixels in images]
    with torch.no_grad():
        each = [network(a, b) for a, b in combinations(theirs, 2)]
    ours = torch.stack([distance.prepare(pixels) for pixels in images])
    first, second = torch.triu_indices(4, 4, offset=1)
    distances = distance.network(ours[first], ours[second])
    torch.testing.assert_close(distances, torch.cat(each).flatten(), rtol=0, atol=1e-6)
    mean = mean_over_pairs(distance.network, ours, batch_size=4)
    assert float(mean) == pytest.approx(float(torch.cat(each).mean()), abs=1e-6)
    assert distances.min() > 0.01
    other = learned_perceptual_image_patch_similarity(
        ours[first].clamp(-1, 1), ours[second].clamp(-1, 1), net_type="alex"
    )
    assert float(other) == pytest.approx(float(mean), abs=1e-5)


def test_lpips_of_an_image_and_itself(distance: ImageDistance) -> None:
    image = distance.prepare(smooth((LEAST, LEAST), 0))[None]
    assert distance.network(image, image).eq(0).all()
    with pytest.raises(UserError, match=f"at least {LEAST} pixels a side, not 40x30"):
        distance.prepare(smooth((LEAST - 1, 40), 0))


def test_weights_are_found_and_checked(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torchvision keeps them, but not other weights of that name; none is a sentence."""
    monkeypatch.delenv(BACKBONE.variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(backbone.parent.parent.parent))
    with pytest.raises(UserError, match=r"is truncated, or not alexnet-owt-7be5be79.pth"):
        lpips_distance()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"fetch alexnet-owt-7be5be79.pth .*STEPDISTILL_ALEXNET"):
        lpips_distance()
    monkeypatch.setenv(BACKBONE.variable, str(tmp_path / "other.pth"))
    (tmp_path / "other.pth").write_bytes(backbone.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"other.pth is truncated"):
        lpips_distance()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r'needs lpips .*pip install "stepdistill\[scores\]"'):
        alexnet_lpips(backbone)
