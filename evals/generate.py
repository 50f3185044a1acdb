"""Sample a student (or any diffusers folder of a known family) into a grid or a folder of images.

Each is called as its users call it, by its stock pipeline; but a pixel teacher of ours (a
``ConsistencyModelPipeline`` with stepdistill.json) is sampled by Heun's method with its EDM times,
2 n - 1 network calls in n steps.

stepdistill sample runs/dmd2/student --steps 1 --output grid.png
stepdistill sample runs/sd/student --prompt "a red fox" "a blue car" --steps 1 2 4 --compare TEACHER
stepdistill sample runs/dmd2/student --num 1000 --output images/     # one PNG each
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.images import CorruptImageError, decoded
from stepdistill.draws import check_seed
from stepdistill.errors import StepDistillError, UserError
from stepdistill.grids import save_grid
from stepdistill.metrics.latency import ms_per_image
from stepdistill.students import Student, load_student
from stepdistill.teachers import folder_of

COLUMNS = 10


@dataclass(frozen=True)
class Options:
    """Sample a student.

    Args:
        student: a diffusers folder
        output: a .png file for one grid, or a folder for one image each
        steps: of a sample, a row of the grid each; default: the trained number (18 of a pixel
            teacher, 1 of others that state none)
        num: how many images (default 40; 4 with --compare or prompts)
        seed: of the first image; image i has seed + i, whatever the batch size
        labels: class numbers, repeated to num; default: all classes in turn
        prompt: of a model that is told by text, repeated to num
        image: the first frame, of an image-to-video model
        compare: another folder, file, hub id or built-in teacher as the first row, at equal seeds
        compare_config: the folder or hub id that describes a file, as train's load.config
        compare_steps: its steps; default: a student's trained number, its family's of a teacher
            (18 of Heun's method for pixels, else 30)
        guidance_scale: of --compare (default: its pipeline's own)
        anyway: use guidance_scale on a student too, which is trained to do without
        batch_size: images a pipeline call
    """

    student: str
    output: str = "samples.png"
    steps: tuple[int, ...] = ()
    num: int | None = None
    seed: int = 0
    labels: tuple[int, ...] = ()
    prompt: tuple[str, ...] = ()
    image: str | None = None
    compare: str | None = None
    compare_config: str | None = None
    compare_steps: int | None = None
    guidance_scale: float | None = None
    anyway: bool = False
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("num", "batch_size", "compare_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        check_seed(self.seed)


@dataclass(frozen=True)
class Row:
    """One row of the grid: its label and how its images are made."""

    label: str
    sample: Callable[[Sequence[int]], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, write, and print where and how fast."""
    settings = parse("stepdistill sample", (Options,), {}, arguments, positional=True)
    options = settings.get(Options)
    output = Path(options.output)
    as_grid = output.suffix.lower() == ".png"
    make_writable(output.parent if as_grid else output)
    student = load_student(Path(options.student))
    rows = rows_of(options, student)
    if not as_grid and len(rows) > 1:
        raise UserError(f"{len(rows)} kinds of samples need a .png as --output, for a grid")
    num = options.num or (4 if options.compare or student.is_told_by_text else 40)
    seeds = range(options.seed, options.seed + num)
    if len(rows) == 1:
        images = pictures(rows[0].sample(seeds))
        if not as_grid:
            save_each(images, output, options.seed)
        else:
            width = min(num, COLUMNS)
            save_grid([images[i : i + width] for i in range(0, len(images), width)], output)
    else:
        found = [pictures(row.sample(seeds)) for row in rows]
        times = ms_per_image([partial(row.sample, seeds) for row in rows], num, rounds=1)
        labels = [f"{row.label}, {ms:.0f} ms" for row, ms in zip(rows, times, strict=True)]
        save_grid(found, output, labels=labels)
        print("\n".join(f"{label} an image" for label in labels))
    print(output)


def rows_of(options: Options, student: Student) -> list[Row]:
    """The teacher's row if there is one to compare with, then one for each number of steps."""
    guided = student.guidance(options.guidance_scale, options.anyway or bool(options.compare))
    own = {} if options.compare else guided
    rows, image = [], None
    if options.image is not None:
        image = first_frame(options.image, student)
    if options.compare is not None:
        teacher = load_student(folder_of(options.compare), options.compare_config)
        more = teacher.guidance(options.guidance_scale)
        size = {k: v for k, v in student.call.items() if k in ("height", "width", "num_frames")}
        own_steps = teacher.family.teacher_steps if teacher.is_teacher else None
        steps = teacher.steps(options.compare_steps or own_steps)
        rows.append(_row("teacher", options, teacher, steps, {**size, **more}, image))
    for asked in options.steps or (None,):
        rows.append(_row("student", options, student, student.steps(asked), own, image))
    return rows


def _row(
    kind: str,
    options: Options,
    model: Student,
    steps: int,
    more: dict[str, Any],
    image: Image.Image | None,
) -> Row:
    """``model`` called with ``steps`` steps; ``image`` is the first frame, where it takes one."""

    def sample(seeds: Sequence[int]) -> Tensor:
        told = told_to(options, model, len(seeds), image)
        return model.sample(told, seeds, steps, options.batch_size, **more)

    return Row(f"{kind}, {steps} step{'s' if steps > 1 else ''}", sample)


def first_frame(path: str, student: Student) -> Image.Image:
    """The picture in ``path``. UserError if it cannot be read, or for a model that takes none."""
    if student.family.card.task != "image-to-video":
        raise UserError("this model goes on from no first frame: leave image out")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}: give a picture as --image")
    try:
        return decoded(Path(path), path).convert("RGB")
    except CorruptImageError as error:
        raise UserError(f"{path} is not a readable image: give another --image") from error


def told_to(
    options: Options, model: Student, num: int, image: Image.Image | None
) -> list[Any] | None:
    """What each of ``num`` samples is told. UserError for labels to one told by text, and such."""
    if not model.is_told_by_text:
        if options.prompt:
            raise UserError("this model is not told by text: leave prompt out")
        return model.labels(num, options.labels)
    if options.labels or not options.prompt:
        raise UserError("this model is told by text: give --prompt, and no labels")
    prompts = [options.prompt[i % len(options.prompt)] for i in range(num)]
    if model.family.card.task != "image-to-video":
        return prompts
    if image is None:
        raise UserError("this model goes on from a first frame: give --image")
    return [(prompt, image) for prompt in prompts]


def pictures(samples: Tensor) -> Tensor:
    """Images as they are; of videos (N, C, frames, H, W) the middle frames."""
    return samples[:, :, samples.shape[2] // 2] if samples.ndim == 5 else samples


def save_each(images: Tensor, folder: Path, seed: int) -> None:
    """One PNG an image, named by its seed. StepDistillError if it cannot be written."""
    for i, x0 in enumerate(images):
        pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        path = folder / f"{seed + i:06d}.png"
        try:
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
        except OSError as error:
            raise StepDistillError(f"could not write {path}: {error}") from error


def make_writable(folder: Path) -> None:
    """Make ``folder``; UserError before the long work if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from error


if __name__ == "__main__":
    guarded(main)
