"""Sample a student (or any pixel diffusers folder) into a grid or a folder of images.

stepdistill sample runs/dmd2/student --steps 1 --output grid.png
stepdistill sample runs/dmd2/student --num 1000 --output images/     # one PNG each
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import StepDistillError, UserError
from stepdistill.grids import save_grid
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
    output: str = "samples.png"
    steps: int | None = None
    num: int = 40
    seed: int = 0
    labels: tuple[int, ...] = ()
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("num", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, write, and print where."""
    settings = parse("stepdistill sample", (Options,), {}, arguments, positional=True)
    options = settings.get(Options)
    output = Path(options.output)
    as_grid = output.suffix.lower() == ".png"
    make_writable(output.parent if as_grid else output)
    student = load_student(Path(options.student))
    images = student.sample(
        student.labels(options.num, options.labels),
        range(options.seed, options.seed + options.num),
        student.steps(options.steps),
        options.batch_size,
    )
    if as_grid:
        width = min(options.num, 10)
        save_grid([images[i : i + width] for i in range(0, len(images), width)], output)
    else:
        save_each(images, output, options.seed)
    print(output)


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
