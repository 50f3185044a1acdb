"""The metrics by name: which way is better, how they are written, and whose convention they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

LOWER, HIGHER = -math.inf, math.inf


@dataclass(frozen=True)
class Metric:
    """``goal`` is the best value there is: LOWER and HIGHER have none, a diversity of 1 is real
    images'; None where there is no better and worse, or none known. ``convention`` says whose
    numbers it may stand beside.
    """

    name: str
    label: str
    goal: float | None
    meaning: str
    convention: str

    @property
    def direction(self) -> str:
        """In words."""
        if self.goal is None:
            return "no direction known"
        words = {LOWER: "lower is better", HIGHER: "higher is better"}
        return words.get(self.goal, f"best at {self.goal:g}")

    @property
    def arrow(self) -> str:
        """In one sign, for the head of a column."""
        if self.goal is None:
            return ""
        return {LOWER: "↓", HIGHER: "↑"}.get(self.goal, f"→ {self.goal:g}")

    def shortfall(self, value: float) -> float:
        """What falls when ``value`` gets better; ``goal`` must be known."""
        assert self.goal is not None
        if math.isinf(self.goal):
            return value if self.goal < 0 else -value
        return abs(value - self.goal)


OURS = "of this package's built-in worlds: stands beside no paper's numbers"
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fid",
            "FID",
            LOWER,
            "Frechet distance of Gaussians fitted to features of the images and of the reference",
            "Heusel et al. 2017, on the extractor, resize and reference named with the table: it "
            "stands beside numbers of the same three only",
        ),
        Metric(
            "fid_min_of_3",
            "FID, least of 3",
            LOWER,
            "the smallest of three FIDs on images of other seeds",
            "Karras et al. 2022 (EDM): below a single FID by chance alone, so never beside one",
        ),
        Metric(
            "fid_floor",
            "FID floor",
            None,
            "the FID of as many real images: what a perfect model would score",
            OURS,
        ),
        Metric(
            "patch_fid",
            "patch FID",
            LOWER,
            "FID of the centre crops of 299 pixels, not resized",
            "Lin et al. 2024 (SDXL-Lightning), and DMD2's COCO-10K",
        ),
        Metric(
            "fd_dinov2",
            "FD-DINOv2",
            LOWER,
            "Frechet distance on DINOv2 ViT-L/14 features",
            "Stein et al. 2023; other sizes of DINOv2 give other numbers",
        ),
        Metric(
            "kid",
            "KID",
            LOWER,
            "squared maximum mean discrepancy of features under a cubic kernel; may fall below 0",
            "Binkowski et al. 2018; not multiplied by 1,000 as some papers print it",
        ),
        Metric(
            "cmmd",
            "CMMD",
            LOWER,
            "squared maximum mean discrepancy of CLIP embeddings under a Gaussian kernel",
            "Jayasumana et al. 2024: CLIP ViT-L/14 at 336 pixels, multiplied by 1,000",
        ),
        Metric(
            "precision",
            "precision",
            HIGHER,
            "share of the images inside of the reference's neighbourhoods: how good they look",
            "Kynkaanniemi et al. 2019; depends on the count on both sides",
        ),
        Metric(
            "recall",
            "recall",
            HIGHER,
            "share of the reference inside of the images' neighbourhoods: how much is covered",
            "Kynkaanniemi et al. 2019; depends on the count on both sides",
        ),
        Metric(
            "density",
            "density",
            HIGHER,
            "how many of the reference's neighbourhoods hold an image; may exceed 1",
            "Naeem et al. 2020; depends on the count on both sides",
        ),
        Metric(
            "coverage",
            "coverage",
            HIGHER,
            "share of the reference's neighbourhoods that hold an image",
            "Naeem et al. 2020; depends on the count on both sides",
        ),
        Metric(
            "inception_score",
            "Inception Score",
            HIGHER,
            "exponential of the mean divergence of an image's class from all images' classes",
            "Salimans et al. 2016, on the classifier named with the table",
        ),
        Metric(
            "clip_score",
            "CLIP score",
            HIGHER,
            "agreement of the image with its prompt",
            "of the scorer named with the table: its name does not say which",
        ),
        Metric(
            "clip_score_vit_g_14",
            "CLIP score, ViT-g/14",
            HIGHER,
            "mean cosine of image and prompt, neither clipped nor multiplied by 100",
            "DMD2 (Yin et al. 2024): open_clip ViT-g-14, prompts begin with A photo depicts",
        ),
        Metric(
            "clip_score_torchmetrics",
            "CLIP score, torchmetrics",
            HIGHER,
            "100 times the cosine of image and prompt, clipped at 0",
            "torchmetrics, on OpenAI's CLIP: never beside the ViT-g/14 one",
        ),
        Metric(
            "lpips_diversity",
            "LPIPS diversity",
            HIGHER,
            "mean perceptual distance of two images of one prompt",
            "Zhang et al. 2018's distance; depends on the prompts and on the images of each",
        ),
        Metric(
            "hpsv2",
            "HPSv2",
            HIGHER,
            "preference that a model of human votes predicts",
            "Wu et al. 2023, version 2.1; depends on the prompts",
        ),
        Metric(
            "pickscore",
            "PickScore",
            HIGHER,
            "preference that a model of human votes predicts",
            "Kirstain et al. 2023; depends on the prompts",
        ),
        Metric(
            "aesthetic",
            "aesthetic score",
            HIGHER,
            "rating from 1 to 10 that a model of human ratings predicts",
            "LAION's predictor on CLIP ViT-L/14",
        ),
        Metric(
            "class_accuracy",
            "class accuracy, %",
            HIGHER,
            "share of the images that the classifier takes for the class that was asked for",
            OURS,
        ),
        Metric(
            "caption_accuracy",
            "caption accuracy, %",
            HIGHER,
            "share of the images that show everything their prompt says",
            OURS,
        ),
        Metric(
            "diversity",
            "diversity",
            1.0,
            "mean distance of two images of one class or prompt, over that of real images",
            OURS,
        ),
    )
}
OF_TEACHER = (
    "comparisons during training where there is no reference: stands beside no paper's numbers"
)
_COMPARISONS = (
    *("fid", "patch_fid", "fd_dinov2", "kid", "cmmd"),
    *("precision", "recall", "density", "coverage"),
)


def of_teacher(name: str) -> str:
    """What a comparison is called where the teacher's own samples are the reference."""
    return "teacher_distance" if name == "fid" else f"teacher_{name}"


METRICS |= {
    of_teacher(name): replace(
        METRICS[name],
        name=of_teacher(name),
        label=f"{METRICS[name].label} to the teacher",
        meaning=f"{METRICS[name].meaning}, with the teacher's own samples as the reference",
        convention=OF_TEACHER,
    )
    for name in _COMPARISONS
}
MS = Metric("ms_per_image", "ms an image", LOWER, "milliseconds, of whole calls", "")
MS_ONE = Metric("ms_one_image", "ms of one image", LOWER, "milliseconds, batch of one", "")
MEMORY = Metric("peak_memory_gib", "peak memory, GiB", None, "while sampling", "")
SPEED = (MS, MS_ONE, MEMORY)


def named(name: str) -> Metric:
    """The metric of that name; one that is not in the list has no direction and no convention."""
    label = name.replace("_", " ")
    unknown = Metric(name, label, None, "not in the list of metrics", "not known: none is marked")
    return METRICS.get(name, unknown)


def in_order(names: set[str]) -> list[Metric]:
    """Those of ``names``, as they are listed here; others after them by name."""
    known = [metric for name, metric in METRICS.items() if name in names]
    return known + [named(name) for name in sorted(names - set(METRICS))]
