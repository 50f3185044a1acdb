"""Fidelity and diversity by nearest neighbours: precision, recall, density and coverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .rows import blocks, two_sets

NEAREST = 3  # Kynkaanniemi et al.
DENSITY_NEAREST = 5  # Naeem et al.
TIE = 1e-12  # of the squared lengths about it: a hundred times what a product of rows rounds


@dataclass(frozen=True)
class Neighbours:
    """Precision: generated samples within a real one's ball; recall: real ones within a generated
    one's; density: real balls about a generated sample, over k; coverage: real balls that hold a
    generated sample. A ball's radius is the distance to its centre's k-th neighbour of its kind.

    All but the density are shares. Each depends on both counts, so they are compared at equal
    ones; the papers take 50,000 (precision, recall) and 10,000 (density, coverage) of both.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    nearest: int = NEAREST
    density_nearest: int = DENSITY_NEAREST


def neighbours(
    generated: Tensor,
    real: Tensor,
    nearest: int = NEAREST,
    density_nearest: int = DENSITY_NEAREST,
) -> Neighbours:
    """Of features (N, D) and (M, D), in float64 on their device.

    A sample on the edge of a ball is inside for precision and recall (Kynkaanniemi et al. 2019,
    Eq. 1) and outside for density and coverage (Naeem et al. 2020), so ties must come out as ties,
    copies of one image above all: squared distances are of float64 products of centred rows, and
    those that their rounding cannot tell apart count as equal. (In float32 a near neighbour's would
    lose half its digits.) Blocks of 2,048 x 2,048 distances are held, 32 MiB, never all N M.
    UserError where a set has no more samples than the neighbours asked for.
    """
    two_sets(generated, real)
    if min(nearest, density_nearest) < 1:
        raise UserError("a ball reaches to the first neighbour at least: give 1 or more")
    centre = torch.stack([rows.sum(0) for _, rows in blocks(real)]).sum(0) / len(real)
    radii = _squared_radii(real, centre, max(nearest, density_nearest))
    ties = TIE * (_squared_lengths(real, centre)[:, None] + radii)
    balls = (radii + ties)[:, nearest - 1]  # with their edges
    tight = (radii - ties)[:, density_nearest - 1]  # without
    own_radii = _squared_radii(generated, centre, nearest)[:, -1]
    own_balls = own_radii + TIE * (_squared_lengths(generated, centre) + own_radii)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    within = 0
    for i, x in blocks(generated):
        for j, y in blocks(real):
            distances = _squared_distances(x - centre, y - centre)
            precise[i] |= (distances <= balls[j]).any(1)
            recalled[j] |= (distances <= own_balls[i, None]).any(0)
            inside = distances < tight[j]
            covered[j] |= inside.any(0)
            within += int(inside.sum())
    return Neighbours(
        precision=_share(precise),
        recall=_share(recalled),
        density=within / (density_nearest * len(generated)),
        coverage=_share(covered),
        nearest=nearest,
        density_nearest=density_nearest,
    )


def _squared_radii(features: Tensor, centre: Tensor, nearest: int) -> Tensor:
    """Squared distances of each row to its ``nearest`` other rows, ascending (N, nearest)."""
    if len(features) <= nearest:
        raise UserError(
            f"{len(features)} samples do not have {nearest} neighbours each: give more of them"
        )
    radii = features.new_full((len(features), nearest), torch.inf, dtype=torch.float64)
    for i, x in blocks(features):
        for j, y in blocks(features, i.start):
            distances = _squared_distances(x - centre, y - centre)
            if i == j:
                distances.fill_diagonal_(torch.inf)  # a row is not its own neighbour
            radii[i] = _least(radii[i], distances)
            if i != j:
                radii[j] = _least(radii[j], distances.T)  # the block of j and i
    return radii


def _least(so_far: Tensor, more: Tensor) -> Tensor:
    """The smallest of each row of both, as many as there were."""
    return torch.cat([so_far, more], 1).topk(so_far.shape[1], largest=False).values


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i|^2 + |y_j|^2 - 2 x_i . y_j   (N, M)."""
    squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return squares.add_(x.square().sum(1, keepdim=True))


def _squared_lengths(features: Tensor, centre: Tensor) -> Tensor:
    return torch.cat([(x - centre).square().sum(1) for _, x in blocks(features)])


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
