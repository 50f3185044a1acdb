"""How students are watched during training: measured, and drawn beside their teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ..captioned_world import CAPTIONED, captioned_evaluation
from ..conditioning import Conditioning
from ..grids import save_grid
from ..methods.base import Method
from ..metrics.quality import measure
from ..sampling import NoiseStreams, sample_student, sample_teacher
from ..teachers import LoadOptions, Teacher, load_encoders
from .options import DistilOptions, EvalOptions

MOST_COLUMNS, TEXT_COLUMNS = 10, 4  # of a grid, by class and by prompt
# what is measured of students of the built-in worlds
OF_WORLDS = {
    "digits": ("fid", "class_accuracy", "diversity", "num_samples"),
    "captioned": ("fid", "caption_accuracy", "diversity", "num_samples"),
}


def evaluation(
    options: DistilOptions, method: Method, teacher: Teacher, load: LoadOptions
) -> Callable[[], Mapping[str, float]] | None:
    """How students of the built-in worlds are measured during training; None for others."""
    world = world_of(options, EvalOptions())
    if world == "captioned":
        encodes = with_encoders(options, teacher, load)
        return captioned_evaluation(method, encodes, options.evaluate_samples)
    if world == "digits":
        return digits_evaluation(method, teacher, options.evaluate_samples)
    return None


def world_of(options: DistilOptions, own: EvalOptions) -> str | None:
    """The built-in world whose own measure is taken; None if there is none, or another is given."""
    if own.given:
        return None
    if options.teacher in CAPTIONED:
        return "captioned"
    return "digits" if (options.data or options.teacher) == "digits" else None


def digits_evaluation(
    method: Method, teacher: Teacher, num_samples: int
) -> Callable[[], Mapping[str, float]]:
    """Quality of the student as it is when called, on the digits."""

    def sampler(labels: Tensor, seeds: range) -> Tensor:
        cond = teacher.encode(labels.tolist())
        generator = method.roles["generator"].frozen
        return sample_student(
            generator, method.plan, cond, teacher.sample_shape, NoiseStreams(seeds)
        )

    def evaluate() -> Mapping[str, float]:
        quality = measure(sampler, num_samples)
        return {
            "fid": quality.fid,
            "class_accuracy": quality.class_accuracy,
            "diversity": quality.diversity,
            "num_samples": quality.num_samples,
        }

    return evaluate


def with_encoders(options: DistilOptions, teacher: Teacher, load: LoadOptions) -> Teacher:
    """``teacher``, or one that encodes and decodes as it does, on the CPU, where it does not."""
    return teacher if teacher.has_encoders else load_encoders(options.teacher, load)


def grid_conditioning(options: DistilOptions, teacher: Teacher, load: LoadOptions) -> Conditioning:
    """What the columns of the grids are told: classes, or ``validation_prompts``, by default some
    of the family's.

    For a teacher without encoders they are loaded, on the CPU, to encode the prompts, and released.
    """
    if options.validation_prompts:
        encodes = with_encoders(options, teacher, load)
        return encodes.encode(list(options.validation_prompts)).to("cpu")
    if teacher.is_told_by_text:
        return teacher.shown(TEXT_COLUMNS)
    return teacher.shown(min(teacher.num_classes or MOST_COLUMNS, MOST_COLUMNS))


def sample_grids(
    method: Method, teacher: Teacher, folder: Path, cond: Conditioning
) -> Callable[[int], None]:
    """Draws ``folder``/NNNNNN.png: two rows of the teacher above two of the student, same seeds.

    The columns are those of ``cond``.
    """
    columns = cond.batch_size
    rows = [range(columns), range(columns, 2 * columns)]
    teacher_rows: list[Tensor] = []

    def draw(iteration: int) -> None:
        if not teacher_rows:
            noise = [NoiseStreams(seeds).normal(teacher.sample_shape) for seeds in rows]
            scale = getattr(method.config, "guidance_scale", 1.0)
            found = [sample_teacher(teacher, cond, z, guidance_scale=scale) for z in noise]
            teacher_rows.extend(picture(teacher, x0) for x0 in found)
        generator, shape = method.roles["generator"].frozen, teacher.sample_shape
        students = [
            picture(
                teacher, sample_student(generator, method.plan, cond, shape, NoiseStreams(seeds))
            )
            for seeds in rows
        ]
        save_grid([*teacher_rows, *students], folder / f"{iteration:06d}.png")

    return draw


def picture(teacher: Teacher, x0: Tensor) -> Tensor:
    """x0 -> images (B, C, H, W) in [-1, 1]; of a video its middle frame."""
    pixels = teacher.decode(x0)
    return pixels[:, :, pixels.shape[2] // 2] if pixels.ndim == 5 else pixels
