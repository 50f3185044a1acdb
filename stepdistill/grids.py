"""Grids of images as one PNG, pixels kept crisp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import StepDistillError

TILE = 48  # smallest side of a tile unless ``scale`` is given, so that 8x8 digits can be read
GAP = 2  # pixels between tiles
LABEL, FONT = 18, 12  # pixels of a row's label, and of its letters
GREY = 127  # of the gaps, on white pages and on black ones


def save_grid(
    rows: Sequence[Tensor], path: Path, scale: int | None = None, labels: Sequence[str] = ()
) -> Path:
    """Write ``rows`` of images x0 in [-1, 1], each (N, C, H, W) with C 1 or 3, as one PNG.

    ``labels`` are written above their rows.

    Each pixel becomes ``scale`` x ``scale`` pixels; by default enough for tiles of TILE pixels.
    Shorter rows end early. The file is written aside and renamed. Raises ValueError for no image,
    another number of channels or a scale below 1, and StepDistillError if it cannot be written.
    """
    if not rows or any(row.ndim != 4 or row.shape[1] not in (1, 3) for row in rows):
        raise ValueError(f"rows are (N, 1 or 3, H, W), got {[tuple(row.shape) for row in rows]}")
    scale = max(1, -(-TILE // min(rows[0].shape[2:]))) if scale is None else scale
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    enlarged = [_enlarged(row, scale) for row in rows]
    if labels:
        height = max(image.shape[1] for image in enlarged) + LABEL
        font = ImageFont.load_default(size=FONT)
        width = max(len(row) * (row.shape[2] + GAP) for row in enlarged) - GAP
        width = max(width, *(int(font.getlength(label)) + 8 for label in labels))
        image = Image.new("RGB", (width, len(rows) * (height + GAP) - GAP), (GREY,) * 3)
        for i, (row, label) in enumerate(zip(enlarged, labels, strict=True)):
            image.paste(_titled(row, label, width), (0, i * (height + GAP)))
    else:
        image = Image.fromarray(_assemble(enlarged).numpy())
    aside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(aside, format="PNG", optimize=True)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StepDistillError(f"could not write the image {path}: {error}") from error
    return path


def _titled(row: Tensor, label: str, width: int) -> Image.Image:
    """One row of tiles (N, H, W, 3) below its label, ``width`` pixels wide."""
    tiles = Image.fromarray(_assemble([row]).numpy())
    image = Image.new("RGB", (width, tiles.height + LABEL), "white")
    image.paste(tiles, (0, LABEL))
    ImageDraw.Draw(image).text((4, LABEL // 2), label, fill="black", anchor="lm", font_size=FONT)
    return image


def _enlarged(x0: Tensor, scale: int) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> bytes (N, H scale, W scale, 3)."""
    pixels = ((x0.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _assemble(rows: Sequence[Tensor]) -> Tensor:
    """Rows of tiles (N, H, W, 3) side by side with gaps."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = torch.full(shape, GREY, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = tile
    return canvas
