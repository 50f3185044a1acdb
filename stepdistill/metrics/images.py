"""Features of image files and of samples, as 8-bit images: moments of a whole folder, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import UNREADABLE, CorruptImageError
from ..errors import NonFiniteError, UserError
from .features import CLASSIFIER, load_digit_classifier
from .frechet import Moments

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode and resize; both leave Python's lock
DIGIT_FEATURES = 32
Pixels = NDArray[np.uint8]  # one image (H, W, C)


@dataclass(frozen=True)
class Features:
    """A feature extractor: image files, or x0 (B, C, H, W) in [-1, 1], -> features (B, size).

    Both are seen as 8-bit images, so a sample and the lossless file it is saved in give the same.
    ``mode`` is how files are decoded (PIL's), ``prepare`` turns one image into the network's input.
    """

    name: str
    size: int
    sha256: str  # of the weights
    mode: str
    prepare: Callable[[Pixels], Tensor]
    network: Callable[[Tensor], Tensor]
    batch_size: int = 64  # that suits it

    def __call__(self, images: Sequence[Path] | Tensor) -> Tensor:
        """(B, size)."""
        pixels: Iterable[Pixels] = (
            eight_bit(images)
            if isinstance(images, Tensor)
            else (decode(file, self.mode) for file in images)
        )
        return self.network(torch.stack([self.prepare(p) for p in pixels]))


def digit_features() -> Features:
    """The 32 features of the bundled classifier, which sees 8x8 grey images and no others."""
    classifier = load_digit_classifier()

    def prepare(pixels: Pixels) -> Tensor:
        if pixels.shape != (8, 8, 1):
            height, width, channels = pixels.shape
            raise UserError(
                f"the digit classifier sees 8x8 grey images, not {width}x{height} with {channels} "
                "channels: use the inception features"
            )
        return torch.from_numpy(pixels[None, :, :, 0].astype(np.float32)) / 127.5 - 1

    network, weights = classifier.features, digest(CLASSIFIER)
    return Features("digits", DIGIT_FEATURES, weights, "L", prepare, network, batch_size=500)


def eight_bit(x0: Tensor) -> Pixels:
    """x0 (B, C, H, W) in [-1, 1] -> what image files hold, (B, H, W, C) in 0 to 255.

    ``features.quantised`` in integers. NonFiniteError names the first image with a NaN or Inf.
    """
    finite = x0.isfinite().flatten(1).all(1)
    if not finite.all():
        raise NonFiniteError(f"NaN or Inf in image {int(finite.int().argmin())} of the batch")
    pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: Pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array


def decode(file: Path, mode: str) -> Pixels:
    """(H, W, C) of an image file, converted to PIL's ``mode``; CorruptImageError names the file.

    UserError for more than 8 bits a pixel, which the conversion would cut off at white.
    """
    try:
        with Image.open(file) as image:
            deep = image.mode.startswith(("I", "F"))
            pixels: Pixels = np.array(image.convert(mode))
    except UNREADABLE as error:
        raise CorruptImageError(
            f"{file} is not a readable image ({error}): remove it, or give --skip_corrupt"
        ) from error
    if deep:
        raise UserError(f"{file} has more than 8 bits a pixel: save it in 8 bits")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def files_moments(
    files: Sequence[Path],
    features: Features,
    batch_size: int | None = None,
    skip_corrupt: bool = False,
    workers: int = WORKERS,
) -> tuple[Moments, list[Path]]:
    """Moments of the features of image files, and the unreadable files that were left out.

    Two batches are decoded ahead of the network; no more are held. UserError names the first
    unreadable file, unless ``skip_corrupt``.
    """

    def read(file: Path) -> Tensor | None:
        try:
            pixels = decode(file, features.mode)
        except CorruptImageError:
            if skip_corrupt:
                return None
            raise
        try:
            return features.prepare(pixels)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error

    moments, skipped = Moments(), []
    with ThreadPoolExecutor(workers) as pool:
        for own, inputs in _ahead(pool, read, files, batch_size or features.batch_size):
            skipped += [file for file, x in zip(own, inputs, strict=True) if x is None]
            good = [x for x in inputs if x is not None]
            if good:
                moments.add(features.network(torch.stack(good)))
    return moments, skipped


def _ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[Path], Tensor | None],
    files: Sequence[Path],
    batch_size: int,
) -> Iterator[tuple[Sequence[Path], list[Tensor | None]]]:
    """Batches of files and what ``read`` makes of them, in order."""
    waiting: deque[tuple[Sequence[Path], Iterator[Tensor | None]]] = deque()
    for begin in range(0, len(files), batch_size):
        own = files[begin : begin + batch_size]
        waiting.append((own, pool.map(read, own)))
        if len(waiting) > 2:
            done, inputs = waiting.popleft()
            yield done, list(inputs)
    for done, inputs in waiting:
        yield done, list(inputs)


def digest(file: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    running = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            running.update(block)
    return running.hexdigest()
