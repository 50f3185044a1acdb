"""Any network becomes ``x0_hat = denoiser(x_t, t, cond)``.

A *parametrization* says what the network predicts and how it wants its input; it is the only place
that knows eps, x0, v, flow or EDM preconditioning. Everything else in the library speaks x0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .schedules import Schedule, expand_like


class Prediction(NamedTuple):
    """A denoiser's answer: ``x0_hat`` like x_t, and the tapped features if they were asked for."""

    x0_hat: Tensor
    features: tuple[Tensor, ...] = ()


class Parametrization(ABC):
    """What a network predicts. ``alpha`` and ``sigma`` come widened to the shape of ``x_t``."""

    @abstractmethod
    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Network output -> x0_hat."""

    @abstractmethod
    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The inverse of :meth:`x0_hat`: the output that stands for ``x0``."""

    @abstractmethod
    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """w such that w |x0_hat - x0|^2 is the squared error in the space of the output."""

    def scale_input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network sees of x_t."""
        return x_t

    def timestep(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The number (B,) the network is fed as its time."""
        return schedule.timestep(t)


class PredictsX0(Parametrization):
    """The network predicts x0."""

    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class PredictsEps(Parametrization):
    """The network predicts eps: x0 = (x_t - sigma eps) / alpha (Ho et al., DDPM)."""

    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / alpha

    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - alpha * x0) / sigma

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2


class PredictsV(Parametrization):
    """v = alpha eps - sigma x0 on a VP schedule, so x0 = alpha x_t - sigma v (Salimans and Ho)."""

    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x_t - sigma * output

    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x_t - x0) / sigma

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**-2


class PredictsFlow(Parametrization):
    """u = eps - x0 on any schedule: x0 = (x_t - sigma u) / (alpha + sigma).

    On a flow schedule alpha + sigma = 1 and this is x0 = x_t - t u.
    """

    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / (alpha + sigma)

    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - (alpha + sigma) * x0) / sigma

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha + sigma) / sigma) ** 2


@dataclass(frozen=True)
class PredictsEDM(Parametrization):
    """EDM preconditioning (Karras et al. 2022, Table 1), with n = sigma / alpha the noise level.

        x0_hat = c_skip x + c_out F(c_in x; c_noise),   x = x_t / alpha
        c_skip = s_d^2 / ((n - n0)^2 + s_d^2),  c_out = (n - n0) s_d / sqrt(n^2 + s_d^2),
        c_in = 1 / sqrt(n^2 + s_d^2),           c_noise = noise_scale ln n

    ``boundary`` n0 = 0 is EDM. With n0 = sigma_min it is the consistency-model form (Song et al.
    2023, appendix C), for which x0_hat = x exactly at n = n0, whatever the weights.
    ``noise_scale`` is 1/4 in EDM and 250 in networks of diffusers' consistency-model pipeline.
    """

    sigma_data: float = 0.5
    boundary: float = 0.0
    noise_scale: float = 0.25

    def x0_hat(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, _ = self.scalings(sigma / alpha)
        return c_skip * x_t / alpha + c_out * output

    def output(self, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, _ = self.scalings(sigma / alpha)
        return (x0 - c_skip * x_t / alpha) / c_out

    def loss_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.scalings(sigma / alpha)[1] ** -2

    def scale_input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.scalings(sigma / alpha)[2] * x_t / alpha

    def timestep(self, schedule: Schedule, t: Tensor) -> Tensor:
        return -self.noise_scale / 2 * schedule.log_snr(t)  # ln n = -lambda / 2

    def scalings(self, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) at noise level n."""
        c_in = (n**2 + self.sigma_data**2) ** -0.5
        c_skip = self.sigma_data**2 / ((n - self.boundary) ** 2 + self.sigma_data**2)
        return c_skip, (n - self.boundary) * self.sigma_data * c_in, c_in


class Denoises(Protocol):
    """Anything that is called like a :class:`Denoiser`: a role, a frozen view, an exact teacher."""

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction: ...


class FeatureTap:
    """A forward hook that is an object, so a deep copy of the network takes its own tap along.

    While ``on``, it keeps the hooked module's output, or the ``place``-th where it gives several;
    ``Denoiser`` alone switches it.
    """

    def __init__(self, place: int = 0) -> None:
        self.place = place
        self.on = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.on:
            self.value = output[self.place] if isinstance(output, tuple) else output

    def take(self) -> Tensor:
        """The value of the last call, which is then forgotten."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the tapped module was not called in this forward pass")
        return value


class Backbone(nn.Module, ABC):
    """A native network behind ``forward(x, timestep, cond) -> output``; a family subclasses it.

    ``taps`` are the hooks whose values are returned as features, in order. ``unread`` are the names
    (or their beginnings) of parameters whose effect the network itself throws away, such as the
    text stream after a last joint block: they cannot be trained.
    """

    unread: tuple[str, ...] = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.taps: list[FeatureTap] = []
        self._tapped: list[tuple[nn.Module, int]] = []
        self._dtypes: tuple[torch.dtype, torch.dtype | None] | None = None

    def tap(self, module: nn.Module, place: int = 0) -> None:
        """Return the output of ``module`` (a whole block), or its ``place``-th, as a feature."""
        tap = FeatureTap(place)
        module.register_forward_hook(tap)
        self.taps.append(tap)
        self._tapped.append((module, place))

    def blocks(self) -> list[tuple[nn.Module, int]]:
        """All blocks like the tapped ones, from the first to the last, with the output to take.

        Of a U-Net those on the way down, the middle and those on the way up.
        """
        found: dict[int, tuple[nn.Module, int]] = {}
        for tapped, place in self._tapped:
            for block in _alike(self.network, tapped):
                found[id(block)] = (block, place)
        return list(found.values())

    @property
    def dtype(self) -> torch.dtype | None:
        """What a diffusers network computes in; None for one that takes what it is given.

        Its weights may be kept in another dtype (fp8, or norms in float32 in a bf16 model), which
        takes a walk over its modules to find: done again only when the weights change theirs.
        """
        first = next(self.network.parameters(), None)
        if first is None:
            return None
        if self._dtypes is None or self._dtypes[0] != first.dtype:
            self._dtypes = first.dtype, getattr(self.network, "dtype", None)
        return self._dtypes[1]

    @abstractmethod
    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        """The network's raw output for a scaled input ``x``."""


def _alike(network: nn.Module, block: nn.Module) -> list[nn.Module]:
    """The blocks of the list that ``block`` stands in, or of the U-Net whose middle it is."""
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and any(one is block for one in module):
            return list(module)
        if getattr(module, "mid_block", None) is block:
            down: Any = module.get_submodule("down_blocks")
            up: Any = module.get_submodule("up_blocks")
            return [*down, block, *up]
    return [block]


class Denoiser(nn.Module):
    """Backbone + schedule + parametrization -> x0_hat.

    ``t`` is (B,) in [0, 1]. Schedule arithmetic is float64, the conversion to x0 runs in the dtype
    of ``x_t``, whatever precision the network computes in.
    """

    def __init__(
        self, backbone: Backbone, schedule: Schedule, parametrization: Parametrization
    ) -> None:
        super().__init__()
        self.backbone, self.schedule, self.parametrization = backbone, schedule, parametrization

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        alpha_t, sigma_t = self.schedule(t)
        alpha, sigma = expand_like(alpha_t, x_t), expand_like(sigma_t, x_t)
        timestep = self.parametrization.timestep(self.schedule, t).to(x_t.dtype)
        x_in = self.parametrization.scale_input(x_t, alpha, sigma)
        for tap in self.backbone.taps:
            tap.on = features
        dtype = self.backbone.dtype or x_t.dtype
        output = self.backbone(x_in.to(dtype), timestep, cond.cast(dtype)).to(x_t.dtype)
        tapped = tuple(tap.take() for tap in self.backbone.taps) if features else ()
        return Prediction(self.parametrization.x0_hat(x_t, output, alpha, sigma), tapped)

    def loss_weight(self, t: Tensor) -> Tensor:
        """(B,) weight of a squared x0 error that makes it the network's own training error."""
        return self.parametrization.loss_weight(*self.schedule(t))


class Guided(nn.Module):
    """Classifier-free guidance as a denoiser: null + scale (cond - null); scale 1 is off.

    Imagen's form, in x0; guidance is affine, so it is the same in eps, v or flow at fixed x_t, t.
    ``cond`` and null, which is cond with ``null_cond`` in its place, run as one batched call. (Ho
    and Salimans 2022.)
    """

    def __init__(
        self, denoiser: Denoises, guidance_scale: float | Tensor, null_cond: Conditioning
    ) -> None:
        super().__init__()
        self.denoiser, self.guidance_scale, self.null_cond = denoiser, guidance_scale, null_cond

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        (_, x0_hat), tapped = self.both(x_t, t, cond, features=features)
        return Prediction(x0_hat, tapped)

    def both(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """((x0_hat without guidance, x0_hat under it), features without)."""
        null = cond.replace(self.null_cond.to(x_t.device).expand(len(x_t)))
        both = Conditioning.cat([cond, null])
        x0_hat, tapped = self.denoiser(
            torch.cat([x_t, x_t]), torch.cat([t, t]), both, features=features
        )
        x0_cond, x0_null = x0_hat.chunk(2)
        scale = torch.as_tensor(self.guidance_scale).expand(len(x_t))
        x0_hat = x0_null + expand_like(scale, x_t) * (x0_cond - x0_null)
        return (x0_cond, x0_hat), tuple(f[: len(x_t)] for f in tapped)


class GuidedWithin(nn.Module):
    """``guided`` at times low < t <= high, ``denoiser`` elsewhere: each sample by its own t.

    Guidance at high noise costs diversity, at low noise it adds nothing. (Kynkaanniemi et al. 2024,
    arXiv:2404.07724.) Samples outside cost one call where guided ones cost two.
    """

    def __init__(self, guided: Denoises, denoiser: Denoises, interval: tuple[float, float]) -> None:
        super().__init__()
        self.guided, self.denoiser, self.interval = guided, denoiser, interval

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        low, high = self.interval
        inside = (low < t) & (t <= high)
        if inside.is_meta:  # no data to decide by: all are guided, which is the most there can be
            inside = torch.ones(len(x_t), dtype=torch.bool)
        indices = inside.nonzero().flatten(), (~inside).nonzero().flatten()
        parts = [
            denoiser(x_t[index], t[index], cond.select(index), features=features)
            for denoiser, index in zip((self.guided, self.denoiser), indices, strict=True)
            if len(index)
        ]
        order = torch.cat(indices).argsort()
        x0_hat, *tapped = (
            torch.cat(values)[order]
            for values in zip(*((p.x0_hat, *p.features) for p in parts), strict=True)
        )
        return Prediction(x0_hat, tuple(tapped))
