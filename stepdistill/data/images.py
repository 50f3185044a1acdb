"""Real images: a folder with one sub-folder a class, or a flat folder without classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageFolder:
    """Images resized to ``shape`` (C, H, W), values in [-1, 1]; classes are the sorted sub-folders.

    ``skipped`` counts the unreadable files that were left out, on request.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    shape: tuple[int, int, int]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: list[int]) -> tuple[Tensor, Conditioning]:
        """The images at ``indices`` and their class labels."""
        x0 = torch.stack([read_image(self.files[i], self.shape) for i in indices])
        if self.labels is None:
            return x0, Conditioning.empty(len(indices))
        labels = torch.tensor([self.labels[i] for i in indices])
        return x0, Conditioning({"class_labels": labels})


def image_files(folder: Path) -> list[Path]:
    """All images below ``folder``, sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder of images at {folder}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def load_image_folder(
    folder: Path, shape: tuple[int, int, int], skip_corrupt: bool = False
) -> ImageFolder:
    """List and check every image of ``folder`` before any long work starts.

    Raises UserError naming the first unreadable file, unless ``skip_corrupt``: then they are left
    out and counted.
    """
    files = image_files(folder)
    good = []
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()
            good.append(file)
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            if not skip_corrupt:
                raise UserError(
                    f"{file} is not a readable image ({error}): remove it, or set skip_corrupt=true"
                ) from error
    if not good:
        raise UserError(f"no image in {folder} is readable")
    names = sorted({p.relative_to(folder).parts[0] for p in good if p.parent != folder})
    labels = None
    if names:
        flat = [p for p in good if p.parent == folder]
        if flat:
            raise UserError(f"{flat[0]} lies beside class folders: move it into one of {names}")
        labels = tuple(names.index(p.relative_to(folder).parts[0]) for p in good)
    return ImageFolder(tuple(good), labels, shape, len(files) - len(good))


def read_image(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """(C, H, W) in [-1, 1], resized with Lanczos if its size differs."""
    channels, height, width = shape
    try:
        with Image.open(file) as image:
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"{file} is not a readable image ({error})") from error
    return pixels.reshape(height, width, channels).permute(2, 0, 1) / 127.5 - 1
