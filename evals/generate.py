"""Sample a student (or any pixel diffusers folder) into a grid or a folder of images.

stepdistill sample runs/dmd2/student --steps 1 --output grid.png
stepdistill sample runs/dmd2/student --num 1000 --output images/     # one PNG each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from stepdistill.grids import save_grid

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.students import load_student


@dataclass(frozen=True)
class Options:
    """Sample a student.

    Args:
        student: a diffusers folder
        output: a .png file for one grid, or a folder for one image each
        steps: network calls a sample; default: the student's trained number
        num: how many images
        seed: of the first image; image i has seed + i, whatever the batch size
        labels: class numbers, repeated to num; default: all classes in turn
        batch_size: images a pipeline call
    """

    student: str
    output: str
    steps: int | None = None
    num: int = 40
    seed: int = 0
    labels: tuple[int, ...] = ()
    batch_size: int = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, write, and print where."""
    settings = parse("stepdistill sample", (Options,), {}, arguments, positional=True)
    options = settings.get(Options)
    if options.num < 1 or options.batch_size < 1:
        raise UserError("num and batch_size must be at least 1")
    student = load_student(Path(options.student))
    images = student.sample(
        student.labels(options.num, options.labels),
        range(options.seed, options.seed + options.num),
        student.steps(options.steps),
        options.batch_size,
    )
    output = Path(options.output)
    if output.suffix.lower() == ".png":
        width = min(options.num, 10)
        save_grid([images[i : i + width] for i in range(0, len(images), width)], output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for i, x0 in enumerate(images):
            pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels.squeeze()).save(output / f"{options.seed + i:06d}.png")
    print(output)


if __name__ == "__main__":
    guarded(main)
