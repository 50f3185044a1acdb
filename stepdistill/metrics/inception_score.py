"""The Inception Score, from features and the matrix that makes logits of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .rows import finite_rows

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's


@dataclass(frozen=True)
class InceptionScore:
    """Mean over the splits and their standard deviation, the published "+-"."""

    mean: float
    deviation: float
    splits: int


def inception_score(
    features: Iterable[Tensor], classes: Tensor, split_of: Tensor
) -> InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)) of each split   (Salimans et al. 2016, section 4).

    ``features`` are blocks (B, D) in order, ``classes`` (K, D) makes logits of them without a bias,
    features @ classes.T, and ``split_of`` (N,) says each sample's split: ``in_order`` or
    ``shuffled``. In float64; nothing is held but one block's logits and K sums a split. ValueError
    where there are not N samples.
    """
    sizes = torch.bincount(split_of).double()
    splits, total, count = len(sizes), len(split_of), 0
    weights = classes.detach().to("cpu", torch.float64)
    marginal = torch.zeros(splits, len(classes), dtype=torch.float64)  # sums of p(y|x)
    negentropy = torch.zeros(splits, dtype=torch.float64)  # sums of p log p
    for block in features:
        rows = finite_rows(block.detach(), count).to("cpu", torch.float64)
        own = split_of[count : count + len(block)]
        count += len(block)
        if count > total:
            break
        log_p = (rows @ weights.T).log_softmax(1)
        p = log_p.exp()
        marginal.index_add_(0, own, p)
        negentropy.index_add_(0, own, (p * log_p).sum(1))
    if count != total:
        raise ValueError(f"split_of is of {total:,} samples, and the features are of {count:,}")
    q = marginal / sizes[:, None]
    # sum_y p (log p - log q) averaged over x, where the average of p is q
    scores = (negentropy / sizes - torch.xlogy(q, q).sum(1)).exp()
    return InceptionScore(float(scores.mean()), float(scores.std(unbiased=False)), splits)


def in_order(total: int, splits: int = SPLITS) -> Tensor:
    """The split of each sample (N,): the first N/splits are the first's, as in the paper's code.

    Right where the samples come mixed; sorted by class, a split would hold few classes.
    """
    if not 1 <= splits <= total:
        raise UserError(f"{total:,} samples cannot be cut into {splits} splits: give fewer splits")
    bounds = torch.arange(splits + 1) * total // splits
    return torch.repeat_interleave(torch.arange(splits), bounds.diff())


def shuffled(total: int, splits: int = SPLITS, seed: int = SHUFFLE_SEED) -> Tensor:
    """The split of each sample (N,) after torch-fidelity's shuffle."""
    split_of = torch.empty(total, dtype=torch.long)
    place = torch.from_numpy(np.random.RandomState(seed).permutation(total))
    split_of[place] = in_order(total, splits)
    return split_of
