"""LPIPS as a loss: the perceptual distance that DMD regresses on its pairs with.

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) - f_lc(y))^2         (Zhang et al. 2018, Eq. 1)

with f_l the features of VGG-16's layer l, of length 1 at each place, and the w that the authors
have learnt. Pictures whose shorter side is below 224 pixels are brought to 224 there, bilinearly
(DMD, arXiv:2311.18828, appendix; Song et al. 2023, arXiv:2303.01469, do so below 256).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from .assets import Asset, check, locate
from .decoding import Decoder, device_of, pictures
from .metrics.scorers.lpips_distance import lpips_network
from .teachers import Teacher

SIDE = 224  # pixels
BACKBONE = Asset(
    "weights of torchvision's VGG-16",
    "vgg16-397923af.pth",
    "STEPDISTILL_VGG16",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    option="--method.lpips_weights FILE",
)


class LPIPS(nn.Module):
    """(x0_hat, x0) -> (B,), of what ``decoder`` makes of them; a video's is the mean of its frames.

    A gradient reaches x0_hat alone: neither the decoder's weights nor the network's learn.
    ``network`` is the lpips package's.
    """

    def __init__(self, network: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder

    def forward(self, x0_hat: Tensor, x0: Tensor) -> Tensor:
        """The distance of each sample."""
        seen = self.features(x0_hat)
        with torch.no_grad():
            target = self.features(x0)
        layers = zip(self.network.lins, seen, target, strict=True)
        each = torch.stack([lin((f - g) ** 2).mean((1, 2, 3)) for lin, f, g in layers]).sum(0)
        return each.reshape(len(x0), -1).mean(1)

    def features(self, x0: Tensor) -> list[Tensor]:
        """Those of each layer, (N, C, h, w), of length 1 over C; 0 where none is above 0."""
        images = large_enough(pictures(self.decoder(x0)))
        found = self.network.net(self.network.scaling_layer(images))
        return [F.normalize(f, dim=1, eps=1e-10) for f in found]


def large_enough(images: Tensor) -> Tensor:
    """Bilinearly to a shorter side of SIDE pixels, if it is below that."""
    short = min(images.shape[2:])
    if short >= SIDE:
        return images
    size = [round(side * SIDE / short) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear")


def vgg_lpips(file: Path) -> nn.Module:
    """The network of LPIPS version 0.1 over the VGG-16 of ``file``, frozen, in eval mode.

    UserError if the package is missing, or the file is damaged or of another network.
    """
    return lpips_network("vgg", vgg16, file)


def lpips_of(teacher: Teacher, weights: str = "") -> LPIPS:
    """Of the teacher's decoded samples, with the VGG-16 of the file ``weights``, else of where the
    environment or torchvision itself keeps it. UserError if it is not there, or is another."""
    file = locate(BACKBONE, weights, [Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE.file])
    assert file is not None  # it is on no hub: locate finds it, or says where to put it
    check(BACKBONE, file)
    return LPIPS(vgg_lpips(file).to(device_of(teacher)), Decoder(teacher))
