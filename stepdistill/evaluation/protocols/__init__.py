"""The protocols by name: ``stepdistill eval STUDENT --protocol NAME``."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UserError
from ...parser import nearest
from . import coco, pixels, worlds
from .custom import custom as custom
from .protocol import Protocol as Protocol

PROTOCOLS: dict[str, Callable[[], Protocol]] = {
    "digits": worlds.digits,
    "captioned-digits": worlds.captioned_digits,
    "cifar10-edm": pixels.cifar10_edm,
    "imagenet64-edm": pixels.imagenet64_edm,
    "imagenet256-adm": pixels.imagenet256_adm,
    "coco2014-30k": coco.coco2014_30k,
    "coco2014-30k-torchmetrics": coco.coco2014_30k_torchmetrics,
    "coco2017-5k": coco.coco2017_5k,
    "coco10k-sdxl": coco.coco10k_sdxl,
    "custom": custom,
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. UserError lists them, with the nearest."""
    if name not in PROTOCOLS:
        near = nearest(name, PROTOCOLS)
        hint = f" Did you mean {near}?" if near else ""
        raise UserError(f"there is no protocol {name}.{hint} There are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]()
