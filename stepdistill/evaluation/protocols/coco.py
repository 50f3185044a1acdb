"""Text to image on MS-COCO: DMD2's two protocols, torchmetrics' form, and 5,000 of 2017."""

from __future__ import annotations

from ...assets import Asset
from ..measures.views import View
from .general import image_measures, text_measures
from .protocol import Protocol

CAPTIONS_2014 = Asset(
    "30,000 captions of COCO 2014",
    "captions_coco14_test.txt",
    "STEPDISTILL_COCO2014_PROMPTS",
    "https://github.com/tianweiy/DMD2/tree/main/main/coco_eval",
    option="--prompts",
)
IMAGES_2014 = Asset(
    "validation images of COCO 2014",
    "val2014.zip",
    "STEPDISTILL_COCO2014_REFERENCE",
    "http://images.cocodataset.org/zips/val2014.zip",
    option="--reference",
)
CAPTIONS_2017 = Asset(
    "captions of COCO 2017, one an image, one a line",
    "captions_coco17_val.txt",
    "STEPDISTILL_COCO2017_PROMPTS",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    option="--prompts",
)
IMAGES_2017 = Asset(
    "validation images of COCO 2017",
    "val2017.zip",
    "STEPDISTILL_COCO2017_REFERENCE",
    "http://images.cocodataset.org/zips/val2017.zip",
    option="--reference",
)
COCO_10K = "https://huggingface.co/tianweiy/DMD2/tree/main/data/coco"
CAPTIONS_10K = Asset(
    "10,000 captions of DMD2's SDXL evaluation",
    "all_prompts.pkl of coco10k.zip",
    "STEPDISTILL_COCO10K_PROMPTS",
    COCO_10K,
    option="--prompts",
)
IMAGES_10K = Asset(
    "10,000 real images of DMD2's SDXL evaluation",
    "subset, a folder of coco10k.zip",
    "STEPDISTILL_COCO10K_REFERENCE",
    COCO_10K,
    option="--reference",
)
BY_IMAGE = (
    "noise is drawn by each image's seed; DMD2's is seeded by the number of a batch, so its value "
    "depends on the batch size: the same distribution, not the same images",
    "pixels are rounded to 8 bits, as diffusers' pipelines do; DMD2 cuts the fraction off",
)


def coco2014_30k() -> Protocol:
    """DMD2's evaluation of Stable Diffusion 1.5."""
    return Protocol(
        name="coco2014-30k",
        about="DMD2's: 30,000 captions, 256 pixels by LANCZOS, clean-fid, ViT-g-14 CLIP score",
        source="Yin et al. 2024 (DMD2), test_folder_sd.py; reference: all of val2014",
        num=30_000,
        kind="text",
        measures={**image_measures(View("inception", 256)), **text_measures()},
        default=("fid", "clip_score_vit_g_14"),
        prompts=CAPTIONS_2014,
        reference=IMAGES_2014,
        notes=BY_IMAGE,
    )


def coco2014_30k_torchmetrics() -> Protocol:
    """The same captions and images, as torchmetrics' FrechetInceptionDistance and CLIPScore."""
    return Protocol(
        name="coco2014-30k-torchmetrics",
        about="30,000 captions, 256 pixels, torchmetrics' FID (TensorFlow's resize) and CLIPScore",
        source="torchmetrics' FrechetInceptionDistance and CLIPScore",
        num=30_000,
        kind="text",
        measures={**image_measures(View("inception-tf", 256)), **text_measures()},
        default=("fid", "clip_score_torchmetrics"),
        prompts=CAPTIONS_2014,
        reference=IMAGES_2014,
        notes=("not comparable with coco2014-30k: another resize, and another CLIP score",),
    )


def coco2017_5k() -> Protocol:
    """Zero-shot on the 5,000 validation images of 2017."""
    return Protocol(
        name="coco2017-5k",
        about="5,000 captions of val2017, clean-fid at the samples' size, ViT-g-14 CLIP score",
        source="Sauer et al. 2023 (ADD): one caption of each image of val2017",
        num=5_000,
        kind="text",
        measures={**image_measures(View("inception")), **text_measures()},
        default=("fid", "clip_score_vit_g_14"),
        prompts=CAPTIONS_2017,
        reference=IMAGES_2017,
        notes=(
            "5,000 samples raise a Frechet distance: compare with 5,000 alone",
            "which caption of an image is used is the file's choice; its hash is told_sha256",
            "photographs are not square, and clean-fid's resize to 299x299 stretches them",
        ),
    )


def coco10k_sdxl() -> Protocol:
    """DMD2's evaluation of SDXL, with the patch FID of SDXL-Lightning."""
    measures = {
        **image_measures(View("inception", 512)),
        **text_measures(),
    }
    return Protocol(
        name="coco10k-sdxl",
        about="DMD2's for SDXL: 10,000 captions, FID at 512 pixels, patch FID, ViT-g-14 CLIP score",
        source="Yin et al. 2024 (DMD2), test_folder_sdxl.py with eval_res 512",
        num=10_000,
        kind="text",
        measures=measures,
        default=("fid", "patch_fid", "clip_score_vit_g_14"),
        prompts=CAPTIONS_10K,
        reference=IMAGES_10K,
        notes=BY_IMAGE,
    )
