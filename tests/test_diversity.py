"""Diversity: pairs counted by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from stepdistill.metrics.diversity import diversity, mean_over_pairs, pairwise_distance


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
