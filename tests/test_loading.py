"""Which samples and numbers an iteration gets: functions of the seed, whoever computes it."""

from itertools import chain

import pytest
import torch

from stepdistill.conditioning import ConditionDropout, Conditioning
from stepdistill.data.loading import Cut, ShardedOrder, TensorData, global_batches
from stepdistill.draws import Draws
from stepdistill.errors import UserError


def flat(lists):
    return list(chain.from_iterable(lists))


def test_every_epoch_is_a_permutation():
    """Each epoch shows every sample once, in another order; a seed gives another one too."""
    size, batch = 50, 8
    cut = Cut.of(batch, 8)
    order = flat(ShardedOrder(size, cut, 0, 0, 25))  # 200 samples: 4 epochs
    epochs = [order[i : i + size] for i in range(0, 200, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert flat(ShardedOrder(size, cut, 1, 0, 25)) != order
    assert flat(ShardedOrder(size, cut, 0, 7, 25)) == order[7 * batch :]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_order_is_the_same_for_any_cut(ranks, accumulate):
    """Ranks and micro-batches read parts of one global batch, in its order; also past an epoch."""
    size, batch, last = 5, 16, 9  # a batch of three epochs
    together = list(ShardedOrder(size, Cut.of(batch, 8), 3, 0, last))
    orders = [
        list(ShardedOrder(size, Cut.of(batch, 8, accumulate, rank, ranks), 3, 0, last))
        for rank in range(ranks)
    ]
    for iteration in range(last):
        parts = slice(iteration * accumulate, (iteration + 1) * accumulate)
        assert flat(flat(order[parts]) for order in orders) == together[iteration]


def test_draws_are_the_same_for_any_cut():
    """Normal and uniform numbers belong to shards, shared indices to the iteration."""
    whole = Draws(0, 5, "critic", range(8))
    parts = [Draws(0, 5, "critic", range(i, i + 2)) for i in (0, 2, 4, 6)]
    for _ in range(2):  # a second draw gives other numbers
        assert torch.equal(whole.normal(16, 3), torch.cat([d.normal(4, 3) for d in parts]))
        assert torch.equal(whole.uniform(16), torch.cat([d.uniform(4) for d in parts]))
        assert len({whole.shared_index(1000), *(d.shared_index(1000) for d in parts)}) == 1
        assert len(whole.normal(16).unique()) == 16  # no shard repeats another
        assert [d.normal(4).shape for d in parts] == [(4,)] * 4  # they draw on together
    others = [Draws(1, 5, "critic"), Draws(0, 6, "critic"), Draws(0, 5, "generator")]
    values = {Draws(0, 5, "critic").normal(1).item(), *(d.normal(1).item() for d in others)}
    assert len(values) == 4


def test_batches_that_shards_do_not_divide():
    """A batch of 12 has 4 shards of the 8 asked for; cuts that take no whole shard are refused."""
    assert Cut.of(12, 8).shards == 4
    assert [list(Cut.of(12, 8, 2).places(m)) for m in Cut.of(12, 8, 2).micro] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    with pytest.raises(UserError, match="2 processes x accumulate=3 must divide the 4 shards"):
        Cut.of(12, 8, 3, 0, 2)


def told(probability, ranks=1, accumulate=1, first=0, last=6):
    """The labels of the iterations ``first`` + 1 to ``last``, -1 where dropout hides them."""
    data = TensorData(None, Conditioning({"label": torch.arange(5), "size": torch.arange(5)}))
    dropout = ConditionDropout(probability, Conditioning({"label": torch.tensor([-1])}))
    batches = [
        global_batches(data, Cut.of(64, 8, accumulate, rank, ranks), 3, first, last, 0, dropout)
        for rank in range(ranks)
    ]
    return [
        torch.stack([torch.cat([m.cond[name] for micro in parts for m in micro]) for name in names])
        for parts in zip(*batches, strict=True)
        for names in [("label", "size")]
    ]


def test_dropped_conditions_are_as_many_as_asked_for():
    """None, all, or about the part; what the null conditioning does not have stays."""
    for probability, share in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.3)):
        label, size = torch.cat(told(probability, last=30), dim=1)
        hidden = label < 0
        assert hidden.double().mean().item() == pytest.approx(share, abs=0.04 if share % 1 else 0)
        assert torch.equal(label[~hidden], size[~hidden])
        assert size.min() == 0
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"condition_dropout must lie in \[0, 1\]"):
            told(probability)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (8, 1)])
def test_dropped_conditions_are_the_same_for_any_cut(ranks, accumulate):
    """They belong to (iteration, shard): more ranks, micro-batches, or a run that goes on."""
    whole = told(0.5)
    for one, other in zip(told(0.5, ranks, accumulate), whole, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(told(0.5, first=4), whole[4:], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0][0] < 0, whole[1][0] < 0)
