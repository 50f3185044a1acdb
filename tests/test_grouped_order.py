"""The order of samples of several shapes: a global batch of one group, whoever reads it."""

from __future__ import annotations

import math
from itertools import chain, islice, pairwise

import pytest
import torch

from stepdistill.conditioning import Conditioning
from stepdistill.data.loading import Sample, TensorData, global_batches
from stepdistill.data.orders import Cut, GroupedOrder, ShardedOrder

GROUPS = (range(37), [40, 38, 42, *range(50, 60)], range(43, 50))  # 37, 13 and 7 samples


def batches(
    last: int, batch: int = 4, seed: int = 0, first: int = 0, groups=GROUPS
) -> list[list[int]]:
    return list(GroupedOrder(groups, Cut.of(batch, batch), seed, first, last))


@pytest.mark.parametrize(
    ("size", "batch", "first"), [(50, 8, 0), (5, 16, 3), (7, 7, 11), (1, 2, 0)]
)
def test_one_group_is_the_order_of_before(size: int, batch: int, first: int) -> None:
    """To the last index, from any iteration, for any cut."""
    for cut in (Cut.of(batch, 1), Cut.of(batch, batch, math.gcd(batch, 2))):
        before = ShardedOrder(size, cut, 5, first, first + 40)
        grouped = GroupedOrder([range(size)], cut, 5, first, first + 40)
        assert list(grouped) == list(before)
        assert len(grouped) == len(before) == 40 * len(cut.micro)
    moved = GroupedOrder([range(100, 100 + size)], cut, 5, first, first + 40)
    assert list(moved) == [[100 + i for i in micro] for micro in before]


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_every_group_goes_through_epochs_of_its_own(batch: int) -> None:
    """A batch is of one group; all batches of a group in turn are permutation after permutation.

    Also of groups smaller than a batch.
    """
    seen = {g: [] for g in range(len(GROUPS))}
    for indices in batches(600, batch):
        assert len(indices) == batch
        (group,) = (g for g, members in enumerate(GROUPS) if set(indices) <= set(members))
        seen[group] += indices
    for g, members in enumerate(GROUPS):
        size = len(members)
        assert len(seen[g]) > 2 * size
        epochs = [seen[g][i : i + size] for i in range(0, len(seen[g]) - size + 1, size)]
        assert all(sorted(epoch) == sorted(members) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]


def test_groups_take_turns_by_their_sizes() -> None:
    """In the time of e epochs of all 57 samples a group of n has had floor(e n / B) batches: what
    an epoch does not finish is carried over, so nothing is ever dropped."""
    order = batches(2000)
    group_of = [next(g for g, members in enumerate(GROUPS) if b[0] in members) for b in order]
    for epoch in range(1, 130):
        share = [epoch * len(members) // 4 for members in GROUPS]
        so_far = group_of[: sum(share)]
        assert [so_far.count(g) for g in range(3)] == share
    # mixed within an epoch, each time otherwise: a group does not have all its turns at once
    assert group_of[: sum(len(members) for members in GROUPS)] != group_of[57:114]  # 4 epochs each
    first = group_of[: sum(8 * len(members) // 4 for members in GROUPS)]
    changes = sum(a != b for a, b in pairwise(first))
    assert changes > len(first) / 4


@pytest.mark.parametrize("batch", [4, 32])
def test_it_goes_on_from_any_iteration(batch: int) -> None:
    """The tail of the straight order, without a state; another seed is another order."""
    straight = batches(90, batch)
    for first in (0, 1, 13, 14, 15, 57, 89, 90):
        assert batches(90, batch, first=first) == straight[first:]
    assert batches(90, batch, seed=1) != straight


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (8, 1)])
def test_it_is_the_same_for_any_cut(ranks: int, accumulate: int) -> None:
    """Ranks and micro-batches read parts of one global batch, in its order."""
    together = batches(30, 16)
    parts = [
        iter(GroupedOrder(GROUPS, Cut.of(16, 8, accumulate, rank, ranks), 0, 0, 30))
        for rank in range(ranks)
    ]
    for whole in together:
        read = chain.from_iterable(chain.from_iterable(islice(p, accumulate) for p in parts))
        assert list(read) == whole


class Shapes:
    """Sample i has i % 3 + 1 values."""

    groups = tuple(range(g, 30, 3) for g in range(3))

    def __len__(self) -> int:
        return 30

    def fetch(self, indices: list[int]) -> Sample:
        x0 = torch.stack([torch.full((i % 3 + 1,), float(i)) for i in indices])
        return x0, Conditioning({"i": torch.tensor(indices)})


def test_data_with_groups_is_read_by_groups() -> None:
    """And data without any as before."""
    for workers in (0, 2):
        read = list(global_batches(Shapes(), Cut.of(4, 4, 2), 0, 2, 12, workers))
        assert len(read) == 10
        assert {micro.x0.shape[1] for micros in read for micro in micros} == {1, 2, 3}
        for a, b in read:
            assert a.x0.shape == b.x0.shape
            assert torch.equal(a.x0[:, 0].long(), a.cond["i"])
    plain = TensorData(torch.arange(30.0), Conditioning({"i": torch.arange(30)}))
    cut = Cut.of(4, 4)
    read = [micro.cond["i"].tolist() for (micro,) in global_batches(plain, cut, 0, 0, 12)]
    assert read == list(ShardedOrder(30, cut, 0, 0, 12))
