"""One image: decoded as clean-fid does it, so that features are equal to its.

An alpha channel is dropped, not composited; a palette and CMYK are converted; EXIF orientation is
not applied. More than 8 bits a channel are refused: the conversion would cut off or round them.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from ...data.images import UNREADABLE, CorruptImageError
from ...errors import UserError, first_line
from ...metrics.features import Pixels

# of the raw data of a file: 16 bits a channel, which PIL opens as 8 where there are several
DEEP = re.compile(r";16[BLN]")
# beside what PIL raises, what a damaged or encrypted member of an archive does
DAMAGED = (*UNREADABLE, BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


def decode(file: Path, mode: str) -> Pixels:
    """(H, W, C) of an image file in PIL's ``mode``: :func:`opened`, :func:`pixels_of`."""
    return pixels_of(opened(file, str(file)), mode)


def opened(file: Path | IO[bytes], name: str) -> Image.Image:
    """The image, loaded. CorruptImageError names one that cannot be read.

    UserError for more than 8 bits a channel.
    """
    try:
        with Image.open(file) as lazy:
            raw = "".join(str(tile[3]) for tile in lazy.tile)
            lazy.load()
            image: Image.Image = lazy
    except DAMAGED as error:
        raise unreadable(name, error) from error
    if image.mode.startswith(("I", "F")) or DEEP.search(raw):
        raise UserError(f"{name} has more than 8 bits a pixel: save it in 8 bits")
    return image


def unreadable(name: str, error: Exception) -> CorruptImageError:
    """The sentence for an image that cannot be read."""
    return CorruptImageError(
        f"{name} is not a readable image ({first_line(error)}): remove it, or give --skip_corrupt"
    )


def pixels_of(image: Image.Image, mode: str) -> Pixels:
    """(H, W, C), converted to PIL's ``mode``."""
    pixels: Pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def is_transparent(image: Image.Image) -> bool:
    """Whether some pixel is not fully opaque, which the conversion does not show."""
    if not (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        return False
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    assert isinstance(least, int)
    return least < 255
