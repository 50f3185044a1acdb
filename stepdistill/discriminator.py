"""A GAN head over the features of a denoiser: the critic's own (DMD2) or the frozen teacher's.

A discriminator answers two questions, one in each phase:

* ``learn``: the critic's update. One pass gives the critic's x0_hat for its denoising loss and the
  logits of every judged batch; gradients enter the head, and the critic where it is the trunk.
* ``judge``: the generator's update, of samples that teacher and critic see as well: no pass is made
  twice. ``logits``: of others. Gradients enter the inputs only.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .denoisers import Denoiser, Denoises, FeatureTap, Prediction
from .roles import Role


class Noisy(NamedTuple):
    """Noisy samples with what a denoiser needs beside them."""

    x_t: Tensor
    t: Tensor
    cond: Conditioning


class Discriminator(Protocol):
    """See the top of the file. ``head`` is the role that trains beside the critic."""

    head: Role

    def learn(
        self, critic: Role, denoised: Noisy, judged: tuple[Noisy, ...]
    ) -> tuple[Tensor, list[Tensor]]: ...

    def judge(self, critic: Role, fake: Noisy) -> tuple[Tensor, Tensor | None, Tensor]: ...

    def logits(self, critic: Role, fake: Noisy) -> Tensor: ...


class CriticTrunk:
    """Head on the critic's features (DMD2, section 4.3): the critic learns to discriminate too."""

    def __init__(self, head: Role) -> None:
        self.head = head

    def learn(
        self, critic: Role, denoised: Noisy, judged: tuple[Noisy, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """(x0_hat of ``denoised``, logits of each of ``judged``), from one pass of the critic.

        A judged batch that *is* ``denoised`` shares its pass. Every output feeds the graph, since
        DDP fails when a parameter is left out.
        """
        batches = (denoised, *(b for b in judged if b is not denoised))
        x0_hat, features = critic(*_cat(batches), features=True)
        sizes = [len(b.x_t) for b in batches]
        by_batch = dict(zip(map(id, batches), self.head(features).split(sizes), strict=True))
        unused = 0.0 * x0_hat[sizes[0] :].sum()
        logits = [by_batch[id(b)] + unused for b in judged]
        return x0_hat[: sizes[0]], logits

    def judge(self, critic: Role, fake: Noisy) -> tuple[Tensor, Tensor | None, Tensor]:
        """(the critic's x0_hat, detached; None; logits) of ``fake`` from one frozen pass."""
        x0_hat, features = critic.frozen(*fake, features=True)
        return x0_hat.detach(), None, self.head.frozen(features)

    def logits(self, critic: Role, fake: Noisy) -> Tensor:
        """Logits (B,) of ``fake``."""
        logits: Tensor = self.head.frozen(critic.frozen(*fake, features=True).features)
        return logits


class TeacherTrunk:
    """Head on the frozen teacher's features (LADD, f-distill's FastGen form).

    ``real`` is the teacher as the matching asks it, under guidance say; by default as it is.
    """

    def __init__(self, head: Role, teacher: Denoises, real: Denoises | None = None) -> None:
        self.head, self.teacher = head, teacher
        self.real: Denoises = real or teacher

    def learn(
        self, critic: Role, denoised: Noisy, judged: tuple[Noisy, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`CriticTrunk.learn`; the critic only denoises, the teacher only judges."""
        return critic(*denoised).x0_hat, self.discriminate(judged)

    def discriminate(self, judged: tuple[Noisy, ...]) -> list[Tensor]:
        """Logits of each of ``judged`` for the head to learn by."""
        with torch.no_grad():
            features = self.teacher(*_cat(judged), features=True).features
        return list(self.head(features).split([len(b.x_t) for b in judged]))

    def judge(self, critic: Role, fake: Noisy) -> tuple[Tensor, Tensor | None, Tensor]:
        """(the critic's x0_hat; the teacher's, detached; logits) of ``fake``, a pass each."""
        with torch.no_grad():
            x0_fake = critic.frozen(*fake).x0_hat
        x0_real, features = self.real(*fake, features=True)
        return x0_fake, x0_real.detach(), self.head.frozen(features)

    def logits(self, critic: Role | None, fake: Noisy) -> Tensor:
        """Logits (B,) of ``fake``; the critic plays no part."""
        logits: Tensor = self.head.frozen(self.teacher(*fake, features=True).features)
        return logits


def _cat(batches: tuple[Noisy, ...]) -> Noisy:
    x_t, t, cond = zip(*batches, strict=True)
    return Noisy(torch.cat(x_t), torch.cat(t), Conditioning.cat(cond))


class AllBlocks(nn.Module):
    """A denoiser whose features are those of all its blocks, not of one, tokens laid out as the map
    that they were cut from (LADD).

    The denoiser is the very one that is given, and its own features stay what they are.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.taps: list[FeatureTap] = []
        for block, place in denoiser.backbone.blocks():
            tap = FeatureTap(place)
            block.register_forward_hook(tap)
            self.taps.append(tap)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        """See :class:`Denoiser`."""
        if not features:
            return Prediction(self.denoiser(x_t, t, cond).x0_hat)
        for tap in self.taps:
            tap.on = True
        x0_hat = self.denoiser(x_t, t, cond).x0_hat
        for tap in self.taps:  # the denoiser is called by others too
            tap.on = False
        return Prediction(x0_hat, tuple(as_map(tap.take(), x_t) for tap in self.taps))


def as_map(feature: Tensor, x_t: Tensor) -> Tensor:
    """Tokens (B, h w, C) of the square patches of images ``x_t`` as (B, C, h, w); others as are."""
    if feature.ndim != 3 or x_t.ndim != 4:
        return feature
    (height, width), count = x_t.shape[2:], feature.shape[1]
    patch = math.isqrt(height * width // count)
    rows, columns = height // max(patch, 1), width // max(patch, 1)
    if (rows * patch, columns * patch, rows * columns) != (height, width, count):
        return feature
    return feature.transpose(1, 2).reshape(len(feature), -1, rows, columns)


class Head(nn.Module):
    """A small network for each tapped feature -> logits (B,), their mean.

    Image features (B, C, H, W): DMD2's stack, stride-2 convolutions to 4x4, then one to 1x1, each
    with GroupNorm and SiLU, at least 64 wide; token and vector features: two linear layers, tokens
    averaged. No batch statistics anywhere: a logit must not depend on a sample's neighbours.
    """

    def __init__(self, shapes: list[tuple[int, ...]], width: int | None = None) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(_stack(shape, width or max(shape[0], 64)) for shape in shapes)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(self.stacks, features, strict=True)
        return torch.stack([stack(f).flatten(1).mean(1) for stack, f in pairs]).mean(0)


def _stack(shape: tuple[int, ...], width: int) -> nn.Module:
    """The layers over one feature of ``shape``: (C, H, W), (tokens, C) or (C,)."""
    if len(shape) < 3:
        return nn.Sequential(nn.Linear(shape[-1], width), nn.SiLU(), nn.Linear(width, 1))
    channels, size = shape[0], min(shape[1:])
    layers: list[nn.Module] = []
    while size > 4:
        layers += [nn.Conv2d(channels, width, 4, 2, 1), _norm(width), nn.SiLU()]
        channels, size = width, size // 2
    layers += [nn.Conv2d(channels, width, size), _norm(width), nn.SiLU(), nn.Conv2d(width, 1, 1)]
    return nn.Sequential(*layers)


def _norm(width: int) -> nn.Module:
    """At most 32 groups, of at least 4 channels: at 1x1 a group of one channel is always zero."""
    groups = next((g for g in (32, 16, 8, 4, 2) if width % (4 * g) == 0), 1)
    return nn.GroupNorm(groups, width)


def build_head(
    trunk: Denoiser | AllBlocks, sample_shape: tuple[int, ...], cond: Conditioning
) -> Role:
    """A head whose shapes are those of the features ``trunk`` gives for one probe sample."""
    device = next(trunk.parameters()).device
    x_t = torch.zeros(1, *sample_shape, device=device)
    with torch.no_grad():
        features = trunk(x_t, torch.ones(1, device=device), cond.select(slice(0, 1)), features=True)
    if not features.features:
        raise ValueError("the network has no feature tap to put a discriminator on")
    return Role("head", Head([tuple(f.shape[1:]) for f in features.features]))
