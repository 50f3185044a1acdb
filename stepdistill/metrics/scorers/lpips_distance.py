"""LPIPS (Zhang et al. 2018, version 0.1) between images: what a diversity is measured with.

The network is AlexNet, which the authors' package calls its default and best for judging (VGG is
for training with), which its own program for all pairs of a folder uses (``lpips_1dir_allpairs``),
and which the diversity tables since StarGAN v2 (Choi et al. 2020) are of. Images are taken in
[-1, 1] and at their own size, on which the value depends. DMD2's ``compute_diversity_score`` brings
them to 512x512 in [0, 1], and does not say which network it was given: not comparable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from ...assets import Asset, check, locate
from ...errors import UserError
from ..features import Pixels, digest
from .checkpoints import optional, read_weights, same_shapes

LEAST = 31  # pixels a side: below, AlexNet's last layers see none
BACKBONE = Asset(
    "weights of torchvision's AlexNet",
    "alexnet-owt-7be5be79.pth",
    "STEPDISTILL_ALEXNET",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    option="--weights lpips=FILE",
)


@dataclass(frozen=True)
class ImageDistance:
    """A distance of two images: prepared ones (B, *) and as many others -> (B,)."""

    name: str
    sha256: str  # of the weights
    prepare: Callable[[Pixels], Tensor]
    network: Callable[[Tensor, Tensor], Tensor]
    resize: str = "none"


def alexnet_lpips(file: Path, device: torch.device | str = "cpu") -> ImageDistance:
    """With torchvision's AlexNet of ``file``; the linear layers over it come with the package.

    UserError if the package is missing, the file is damaged or of another network, or an image has
    a side below 31 pixels.
    """
    network = lpips_network("alex", alexnet, file).to(device)

    @torch.no_grad()
    def distance(images: Tensor, others: Tensor) -> Tensor:
        each: Tensor = network(images.to(device), others.to(device))
        return each.flatten()

    return ImageDistance("lpips_alex", digest(file), _prepare, distance)


def lpips_network(name: str, classifier: Callable[[], nn.Module], file: Path) -> nn.Module:
    """The package's network ``name``, with torchvision's ``classifier`` of ``file`` in it, frozen.

    Errors as of :func:`alexnet_lpips`.
    """
    lpips, state = optional("lpips"), read_weights(file)
    with torch.device("meta"):  # for its shapes: most of it is not made use of
        same_shapes(classifier().state_dict(), state, file)
    # weights are read onto the CPU, also where memory is estimated on meta; and the package asks
    # torchvision in words of an older version
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        network: nn.Module = lpips.LPIPS(net=name, version="0.1", pnet_rand=True, verbose=False)
    # its layers keep torchvision's numbers, in slices: "slice2.3.weight" is "features.3.weight"
    inner: Any = network.net
    names = {name: "features." + name.partition(".")[2] for name in inner.state_dict()}
    inner.load_state_dict({name: state[own] for name, own in names.items()})
    return network.eval().requires_grad_(False)


def lpips_distance(weights: str | None = None, device: torch.device | str = "cpu") -> ImageDistance:
    """Of ``weights``, else of where the environment or torchvision itself keeps the file.

    UserError if it is not there, or is another.
    """
    file = locate(BACKBONE, weights, [Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE.file])
    assert file is not None  # it is on no hub: locate finds it, or says where to put it
    check(BACKBONE, file)
    return alexnet_lpips(file, device)


def _prepare(pixels: Pixels) -> Tensor:
    if min(pixels.shape[:2]) < LEAST:
        raise UserError(
            f"LPIPS needs images of at least {LEAST} pixels a side, not "
            f"{pixels.shape[1]}x{pixels.shape[0]}: measure the distance of features instead"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
