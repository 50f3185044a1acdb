"""The metrics that any images may be measured by, on the extractors of the published tables."""

from __future__ import annotations

from ..measures.image_metrics import METRICS
from ..measures.measure import ClippedMean, MeanScore, Measure, PromptDiversity, comparison
from ..measures.views import View

TEXT_SCORES = {
    "clip_score_vit_g_14": ("clip-vit-g-14", "open_clip ViT-g-14, DMD2's: a mean cosine"),
    "clip_score_torchmetrics": (
        "clip-torchmetrics",
        "torchmetrics': 100 times a cosine, the mean at least 0",
    ),
    "hpsv2": ("hpsv2", "Human Preference Score v2.1"),
    "pickscore": ("pickscore", "PickScore v1"),
    "aesthetic": ("aesthetic", "LAION's aesthetic predictor, which sees no prompt"),
}


def image_measures(view: View) -> dict[str, Measure]:
    """All of ``image_metrics``: on ``view`` where the metric has no extractor of its own."""
    return {
        name: comparison(name, metric.view(view.extractor, view.size, None))
        for name, metric in METRICS.items()
    }


def text_measures() -> dict[str, Measure]:
    """What scores images against their prompts."""
    scores: dict[str, Measure] = {
        name: MeanScore(name, about, scorer=scorer) for name, (scorer, about) in TEXT_SCORES.items()
    }
    of_torchmetrics = scores["clip_score_torchmetrics"]
    scores[of_torchmetrics.name] = ClippedMean(**vars(of_torchmetrics))
    return {
        **scores,
        "lpips_diversity": PromptDiversity("lpips_diversity", "LPIPS between samples of a prompt"),
    }
