"""Real images: a folder with one sub-folder a class, or a flat folder without classes."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# what PIL raises for a damaged file (found by cutting and changing some of each format)
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFolder:
    """Images resized to ``shape`` (C, H, W), values in [-1, 1].

    Sub-folders are classes, ``classes`` their names by label: the number that a name is, where all
    names are numbers, else the place in sorted order. ``skipped`` are the unreadable files left
    out, on request.
    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    shape: tuple[int, ...]
    classes: dict[int, str]
    skipped: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: list[int]) -> tuple[Tensor, Conditioning]:
        """The images at ``indices`` and their class labels."""
        x0 = torch.stack([read_image(self.files[i], self.shape) for i in indices])
        if self.labels is None:
            return x0, Conditioning.empty(len(indices))
        labels = torch.tensor([self.labels[i] for i in indices])
        return x0, Conditioning({"class_labels": labels})

    def for_model(self, num_classes: int | None) -> ImageFolder:
        """With the labels a model of ``num_classes`` classes takes: none if it has none.

        UserError for labels that it does not have, or if it needs some and there are none.
        """
        if num_classes is None:
            return replace(self, labels=None, classes={})
        if self.labels is None:
            raise UserError(
                f"{self.path} has no class sub-folders, and the teacher has {num_classes} classes: "
                "put the images into one sub-folder a class"
            )
        for label, name in self.classes.items():
            if label >= num_classes:
                raise UserError(
                    f"{self.path} has {len(self.classes)} classes and the teacher {num_classes}: "
                    f"{name} would be class {label}, and the teacher's last is {num_classes - 1}"
                )
        return self

    def describe(self) -> str:
        """In a sentence: how many, of which classes, and what was left out."""
        sentence = f"{len(self)} images in {self.path}"
        if self.labels is not None:
            shown = [f"{name} = {label}" for label, name in self.classes.items()]
            listed = shown if len(shown) <= 10 else [*shown[:9], f"... {shown[-1]}"]
            sentence += f" of {len(shown)} classes ({', '.join(listed)})"
        if self.skipped:
            sentence += f"; {len(self.skipped)} unreadable left out: " + ", ".join(
                [*map(str, self.skipped[:3]), *(["..."] if len(self.skipped) > 3 else [])]
            )
        return sentence


def image_files(folder: Path) -> list[Path]:
    """All images below ``folder``, sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder of images at {folder}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def load_image_folder(
    folder: Path, shape: tuple[int, ...], skip_corrupt: bool = False
) -> ImageFolder:
    """List and check every image of ``folder`` before any long work starts.

    Raises UserError naming the first unreadable file, unless ``skip_corrupt``: then they are left
    out and counted.
    """
    files = image_files(folder)
    good, skipped = [], []
    for file in files:
        try:
            decoded(file, file)
            good.append(file)
        except CorruptImageError:
            if not skip_corrupt:
                raise
            skipped.append(file)
    if not good:
        raise UserError(f"no image in {folder} is readable")
    label_of = _labels({_class(p, folder) for p in files} - {""})
    flat = [p for p in files if not _class(p, folder)]
    if label_of and flat:
        raise UserError(f"{flat[0]} lies beside class folders: move it into one of {[*label_of]}")
    labels = tuple(label_of[_class(p, folder)] for p in good) if label_of else None
    classes = {label: name for name, label in label_of.items()}
    return ImageFolder(folder, tuple(good), labels, shape, classes, tuple(skipped))


def read_image(file: Path, shape: tuple[int, ...]) -> Tensor:
    """(C, H, W) in [-1, 1], resized with Lanczos if its size differs. UserError names the file."""
    channels, height, width = shape
    image = decoded(file, file).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.reshape(height, width, channels).permute(2, 0, 1) / 127.5 - 1


class CorruptImageError(UserError):
    """An image file that cannot be decoded, named."""


def decoded(file: Path | IO[bytes], name: object) -> Image.Image:
    """The image, 16-bit greys as 8-bit ones: PIL's own conversion would cut them off at white."""
    with readable(name), Image.open(file) as opened:
        opened.load()
        image: Image.Image = opened
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return image


@contextlib.contextmanager
def readable(name: object) -> Iterator[None]:
    """What PIL raises for a damaged file, as a CorruptImageError that names it."""
    try:
        yield
    except UNREADABLE as error:
        raise CorruptImageError(
            f"{name} is not a readable image ({error}): remove it, or give --skip_corrupt"
        ) from error


def _class(file: Path, folder: Path) -> str:
    """The sub-folder of ``folder`` that ``file`` lies in, "" for none."""
    return "" if file.parent == folder else file.relative_to(folder).parts[0]


def _labels(names: set[str]) -> dict[str, int]:
    """Class folder -> label, in the order of the labels."""
    if names and all(name.isascii() and name.isdigit() for name in names):
        numbered = {name: int(name) for name in names}
        if len(set(numbered.values())) == len(names):
            return dict(sorted(numbered.items(), key=lambda pair: pair[1]))
    return {name: label for label, name in enumerate(sorted(names))}
