"""The Inception Score, against torch-fidelity and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stepdistill.errors import NonFiniteError, UserError
from stepdistill.metrics.inception_score import in_order, inception_score, shuffled


def sample(count: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (count, size) of classes that come sorted, and the matrix of logits, float64."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    own = torch.arange(count) * classes // count
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return 0.2 * matrix[own] + 0.5 * noise, matrix


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "splits"), [(1000, 10), (997, 10), (12, 10), (50, 1), (64, 7)])
@pytest.mark.parametrize("batch_size", [1, 13, 2000])
def test_equals_torch_fidelity(count: int, splits: int, shuffle: bool, batch_size: int) -> None:
    """In order and after its own shuffle, where the splits are not equal too; in any blocks."""
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    features, classes = sample(count, 24, 30)
    theirs = metric.isc_features_to_metric(features @ classes.T, splits, shuffle)
    split_of = shuffled(count, splits) if shuffle else in_order(count, splits)
    own = inception_score(iter(torch.split(features, batch_size)), classes, split_of)
    assert own.mean == pytest.approx(theirs[metric.KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert own.deviation == pytest.approx(theirs[metric.KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-9)
    assert own.splits == splits


def test_sorted_classes_need_the_shuffle() -> None:
    """A split in order of sorted samples holds few classes, and its score is lower."""
    features, classes = sample(1000, 24, 30)
    ordered, mixed = (inception_score([features], classes, s(1000)) for s in (in_order, shuffled))
    assert ordered.mean < 0.8 * mixed.mean


def test_closed_forms() -> None:
    """Sure and evenly spread predictions score the number of classes; unsure ones 1, and so do
    sure ones of one class; classes of unequal share p the exponential of their entropy."""
    eye = torch.eye(8)
    sure = 1_000 * eye[torch.arange(80) % 8]
    assert inception_score([sure], eye, in_order(80)).mean == pytest.approx(8, rel=1e-12)
    assert inception_score([0 * sure], eye, in_order(80)).mean == pytest.approx(1, rel=1e-12)
    one = 1_000 * eye[torch.full((80,), 3)]
    assert inception_score([one], eye, in_order(80)).mean == pytest.approx(1, rel=1e-12)
    share = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    some = 1_000 * eye[torch.tensor([0, 0, 1, 2] * 5)]
    entropy = float(torch.special.entr(share).sum().exp())
    assert inception_score([some], eye, in_order(20, 1)).mean == pytest.approx(entropy, rel=1e-12)


def test_mistakes_are_named() -> None:
    """More splits than samples, NaN by its sample, and blocks that are not of as many samples."""
    features, classes = sample(40, 6, 5)
    for total, splits in ((9, 10), (4, 0)):
        with pytest.raises(UserError, match=f"{total} samples cannot be cut into {splits} splits"):
            in_order(total, splits)
    for total in (39, 41):
        with pytest.raises(ValueError, match=f"of {total} samples, and the features are of 40"):
            inception_score([features], classes, in_order(total))
    features[33, 2] = torch.inf
    with pytest.raises(NonFiniteError, match="sample 33"):
        inception_score(torch.split(features, 6), classes, in_order(40))
