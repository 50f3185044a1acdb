"""CIFAR-10 and ImageNet at 64 pixels as EDM measures them, ImageNet at 256 as ADM does."""

from __future__ import annotations

from ...assets import Asset
from ..measures.image_metrics import SCORE_IN_ORDER
from ..measures.measure import Comparison
from ..measures.views import View
from ..models.told import NOTHING, Told, labels_by_seed
from .general import image_measures
from .protocol import Protocol

TENSORFLOW = View("inception-tf")
EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"


def _labels(num_classes: int | None, num: int) -> Told:
    return NOTHING if num_classes is None else labels_by_seed(num_classes)


def _edm(name: str, about: str, file: str, side: int) -> Protocol:
    return Protocol(
        name=name,
        about=f"{about}: 50,000 samples, Inception's features as TensorFlow resizes",
        source="Karras et al. 2022, the program fid.py of NVlabs/edm",
        num=50_000,
        kind="class",
        measures=image_measures(TENSORFLOW),
        default=("fid",),
        labels=_labels,
        reference=Asset(
            f"reference of {about}",
            file,
            f"STEPDISTILL_{name.replace('-', '_').upper()}_REFERENCE",
            EDM + file,
            option="--reference",
        ),
        image_size=side,
        minimum_of=3,
        notes=(
            "fid is the value of one run; EDM reports the least of three runs of 50,000 "
            "(seeds 0 to 149,999), which is fid_min_of_3 of --repeats 3",
            "noise and classes are drawn by each image's seed on the CPU, EDM's on the GPU: the "
            "same distribution, not the same images",
        ),
    )


def cifar10_edm() -> Protocol:
    """FID of CIFAR-10 as EDM measures it."""
    return _edm("cifar10-edm", "CIFAR-10", "cifar10-32x32.npz", 32)


def imagenet64_edm() -> Protocol:
    """FID of ImageNet at 64 pixels as EDM, and DMD2 and FastGen after it, measure it."""
    return _edm("imagenet64-edm", "ImageNet at 64 pixels", "imagenet-64x64.npz", 64)


def imagenet256_adm() -> Protocol:
    """FID, Inception Score, precision and recall of ImageNet at 256 pixels as ADM measures them."""
    file = "VIRTUAL_imagenet256_labeled.npz"
    return Protocol(
        name="imagenet256-adm",
        about="ImageNet at 256 pixels: FID, Inception Score, precision and recall of 50,000",
        source="Dhariwal and Nichol 2021, the program evaluator.py of openai/guided-diffusion",
        num=50_000,
        kind="class",
        measures={
            **image_measures(TENSORFLOW),
            "inception_score": Comparison(
                "inception_score", "of parts in order", TENSORFLOW, metric=SCORE_IN_ORDER
            ),
        },
        default=("fid", "inception_score", "precision_recall"),
        labels=_labels,
        reference=Asset(
            "reference batch of ImageNet at 256 pixels",
            file,
            "STEPDISTILL_IMAGENET256_ADM_REFERENCE",
            ADM + file,
            # of two copies on the hub, 2,037,122,530 bytes each
            "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758",
            option="--reference",
        ),
        image_size=256,
        notes=(
            "ADM runs TensorFlow's graph; these are its weights as a PyTorch file",
            "pixels are rounded to 8 bits, as diffusers' pipelines do; ADM cuts the fraction off",
            "neighbours' distances are taken in float64, ADM's in half precision",
            "sFID, which ADM reports too, is not measured",
        ),
    )
