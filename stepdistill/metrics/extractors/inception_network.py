"""TensorFlow's Inception of 2015-12-05, from either of the two files in which PyTorch has it.

NVIDIA's TorchScript file (StyleGAN2-ADA, EDM, clean-fid) and torch-fidelity's state dict
(torch-fidelity, torchmetrics) hold the same weights. Both are run from the resized image on, so
that how it was resized is the caller's alone: what StyleGAN's and torch-fidelity's forward do
inside, clean-fid does outside. TorchScript holds code, which is run: give no file from strangers.
"""

from __future__ import annotations

import importlib
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...assets import Asset
from ...errors import UserError, first_line

SIZE, CLASSES, SIDE = 2048, 1008, 299
INCEPTION = Asset(
    name="Inception weights",
    file="inception-2015-12-05.pt",
    variable="STEPDISTILL_INCEPTION",
    source="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    # as crowsonkb/k-diffusion asks for, k_diffusion/evaluation.py
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    option="--weights inception=FILE",
)
STATE_DICT = Asset(
    name="Inception weights",
    file="weights-inception-2015-12-05-6726825d.pth",
    variable=INCEPTION.variable,
    source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    # its name carries the first eight digits; the rest from users' records of the release file
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    option="--weights inception=FILE",
)
DAMAGED = (
    RuntimeError,
    AttributeError,
    KeyError,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class InceptionNetwork:
    """``features``: images (B, 3, 299, 299) in 0 to 255, float32 -> (B, 2048), after the pooling.

    ``logits`` (1008, 2048), the class layer's weights. The Inception Score leaves its bias out, as
    the original code does.
    """

    features: Callable[[Tensor], Tensor]
    logits: Tensor


def load_inception(file: Path, device: torch.device | str) -> InceptionNetwork:
    """The network of either file, told apart by what is inside. UserError for a damaged one."""
    try:
        if _is_torchscript(file):
            return _of_torchscript(file, device)
        return _of_state_dict(file, device)
    except DAMAGED as error:
        raise UserError(
            f"{file} is truncated, or not {INCEPTION.file} or {STATE_DICT.file} "
            f"({first_line(error)}): fetch it again from {INCEPTION.source} or {STATE_DICT.source}"
        ) from error


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _of_torchscript(file: Path, device: torch.device | str) -> InceptionNetwork:
    with warnings.catch_warnings():  # torch calls the format deprecated; the file is given
        warnings.simplefilter("ignore", FutureWarning)
        base = torch.jit.load(str(file), map_location=device).eval()  # type: ignore[no-untyped-call]
    layers, classes = base.layers, dict(base.named_parameters()).get("output.weight")
    if classes is None:
        raise UserError(
            f"{file} has no output.weight, the layer of the classes: it is not {INCEPTION.file}"
        )
    return _network(layers, classes)


def _of_state_dict(file: Path, device: torch.device | str) -> InceptionNetwork:
    try:
        fidelity = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UserError(
            f'{file} needs torch-fidelity: pip install "stepdistill[fidelity]", or fetch '
            f"{INCEPTION.file} ({INCEPTION.source})"
        ) from error
    # torch-fidelity reads the file with pickle: it must be plain tensors
    torch.load(file, map_location="meta", weights_only=True)
    whole = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
    )
    # its children stand in the order in which its forward calls them, the class layer last
    body = nn.Sequential(*[child for name, child in whole.named_children() if name != "fc"])
    return _network(body.to(device), whole.fc.weight.to(device))


def _network(layers: Callable[[Tensor], Tensor], classes: Tensor) -> InceptionNetwork:
    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        images = images.to(classes.device, non_blocking=True)
        return layers((images - 128) / 128).reshape(-1, SIZE)

    return InceptionNetwork(features, classes.detach())
