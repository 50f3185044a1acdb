"""Features of image files: moments of a whole folder, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import UNREADABLE, CorruptImageError
from ..errors import UserError
from ..metrics.features import Features, Pixels
from ..metrics.frechet import Moments

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode and resize; both leave Python's lock


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
