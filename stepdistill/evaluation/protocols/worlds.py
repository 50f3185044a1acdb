"""The protocols of the built-in worlds, which need no download."""

from __future__ import annotations

from ...data.captioned_digits import evaluation_prompts
from ...data.digits import NUM_CLASSES
from ...errors import UserError
from ...metrics.quality import digits_reference
from ..measures import world_measures as world
from ..measures.measure import Measure, comparison
from ..measures.views import View
from ..models.told import Told, labels_in_proportion
from .general import text_measures
from .protocol import Protocol

DIGITS_VIEW, SCENES_VIEW = View("digits"), View("scenes")
OF_FEATURES = ("kid", "precision_recall", "density_coverage")


def _labels(num_classes: int | None, num: int) -> Told:
    """In the proportions of the digits. UserError for a model of other classes, or of none."""
    if num_classes != NUM_CLASSES:
        told = "none" if num_classes is None else f"{num_classes}"
        raise UserError(
            f"digits measures models of {NUM_CLASSES} classes, and this one has {told}: take "
            "--protocol custom --features digits with a reference of your own"
        )
    return labels_in_proportion(digits_reference()[1].proportions, num)


def digits() -> Protocol:
    """The digits' distance, class accuracy and diversity on their own classifier."""
    measures: dict[str, Measure] = {
        "fid": comparison("fid", DIGITS_VIEW),
        "fid_floor": world.DigitFloor("fid_floor", "the distance of as many real images"),
        "class_accuracy": world.DigitAccuracy("class_accuracy", "by the classifier", DIGITS_VIEW),
        "diversity": world.DigitDiversity("diversity", "1 is as diverse as data", DIGITS_VIEW),
        **{name: comparison(name, DIGITS_VIEW) for name in OF_FEATURES},
    }
    return Protocol(
        name="digits",
        about="the bundled 8x8 digits: distance, class accuracy, diversity",
        source="this package",
        num=50_000,
        kind="class",
        measures=measures,
        default=("fid", "fid_floor", "class_accuracy", "diversity"),
        labels=_labels,
        reference=world.DigitsReference,
        image_size=8,
        replicates=100,
    )


def captioned_digits() -> Protocol:
    """The captioned pictures' distance, caption accuracy and diversity on the scene classifier."""
    measures: dict[str, Measure] = {
        "fid": comparison("fid", SCENES_VIEW),
        "caption_accuracy": world.CaptionAccuracy("caption_accuracy", "all is shown", SCENES_VIEW),
        "diversity": world.CaptionDiversity("diversity", "1 is as diverse as data", SCENES_VIEW),
    }
    default = tuple(measures)
    measures |= {name: comparison(name, SCENES_VIEW) for name in OF_FEATURES}  # given images
    measures["lpips_diversity"] = text_measures()["lpips_diversity"]
    return Protocol(
        name="captioned-digits",
        about="the bundled text-to-image world: distance, caption accuracy, diversity",
        source="this package",
        num=5_000,
        kind="text",
        measures=measures,
        default=default,
        prompts=tuple(prompt.text for prompt in evaluation_prompts()),
        reference=world.CaptionsReference,
        image_size=32,
        replicates=100,
    )
