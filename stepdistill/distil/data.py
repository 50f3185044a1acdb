"""What a run learns from: real samples where there are any, else conditionings alone."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from ..captioned_world import CAPTIONED, captioned_data
from ..conditioning import ConditionDropout, Conditioning
from ..data import Data, TensorData
from ..data.digits import digits, digits_data
from ..data.images import load_image_folder
from ..encoding import read_told, text_of
from ..errors import UserError
from ..precomputed import check_teacher, find_precomputed
from ..teachers import Teacher
from .options import DistilOptions

ENCODED_AT_ONCE = 16  # prompts in a call of the text encoders


def load_data(options: DistilOptions, teacher: Teacher) -> Data:
    """Real samples if there are any, else conditionings alone.

    UserError for data that this teacher cannot make, or of classes it does not have.
    """
    shape, classes = teacher.sample_shape, teacher.num_classes
    source = options.data or (options.teacher if options.teacher == "digits" else "")
    if found := find_precomputed(source):
        if options.prompts:
            raise UserError(f"{source} brings its own prompts: leave --prompts out")
        check_teacher(found, teacher)
        return found
    if options.prompts:
        return encoded_prompts(options, teacher)
    if not source:
        if options.teacher in CAPTIONED:
            return captioned_data(teacher)
        if teacher.is_told_by_text:
            raise UserError(
                f"{options.teacher} is told by text: give --prompts, or precomputed samples as "
                "--data"
            )
        return TensorData(None, teacher.encode(range(classes or 1)))
    if teacher.is_told_by_text:
        raise UserError(
            f"{options.teacher} is told by text: give images with captions to stepdistill "
            f"precompute --data {source}, and its folder as --data here"
        )
    if shape != teacher.family.pixel_shape(teacher):
        raise UserError(
            f"{options.teacher} samples latents: give the images to stepdistill precompute --data "
            f"{source}, and its folder as --data here"
        )
    if source == "digits":
        wrong = "the digits are 8x8 grey images of 10 classes"
        if shape != (1, 8, 8):
            raise UserError(f"{wrong}, and {options.teacher} makes {shape}")
        if classes is None:
            return TensorData(digits()[0], Conditioning.empty(1797))
        if classes < 10:
            raise UserError(f"{wrong}, and {options.teacher} has {classes} classes")
        return digits_data()
    return load_image_folder(Path(source), shape, options.skip_corrupt).for_model(classes)


def condition_dropout(options: DistilOptions, teacher: Teacher) -> ConditionDropout | None:
    """What hides conditionings, None if nothing does; UserError where there is none to show."""
    probability, null = options.condition_dropout, teacher.null_cond
    if probability == 0:
        return None
    if null is None:
        raise UserError(
            f"condition_dropout={probability} needs a teacher with a null conditioning, and "
            f"{teacher.name} has none: leave it out"
        )
    return ConditionDropout(probability, null.to("cpu"))


def encoded_prompts(options: DistilOptions, teacher: Teacher) -> Data:
    """The conditionings of all prompts, in memory."""
    prompts = list(read_told(teacher, options.prompts, options.column, options.split)[0])
    texts = [text_of(prompt) for prompt in prompts]
    bar = tqdm(range(0, len(prompts), ENCODED_AT_ONCE), "encoding prompts", disable=None)
    parts = [teacher.encode(prompts[i : i + ENCODED_AT_ONCE]).to("cpu") for i in bar]
    return TensorData(None, Conditioning.cat(parts), prompts=texts)
