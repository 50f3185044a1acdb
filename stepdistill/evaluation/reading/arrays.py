"""Images as one array in an .npz: what ADM's programs write and its reference batches hold."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from ...errors import UserError, first_line
from ...metrics.features import Pixels

MEMBER = "arr_0"
# what a damaged or encrypted member raises, and not a full disk
DAMAGED = (BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class InArray:
    """Images (N, H, W, C) of 8 bits in ``arr_0`` of an .npz, mapped into memory where they lie.

    Compressed ones are unpacked beside, into a temporary file that goes with this object.
    """

    path: Path
    shape: tuple[int, ...]
    data: Path
    begin: int  # the first byte of the pixels in ``data``
    _folder: Any = field(default=None, repr=False, compare=False)
    _mapped: list[Pixels] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # the process that unpacked it cleans up, and each maps it for itself
        return {**self.__dict__, "_folder": None, "_mapped": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return self.shape[0]

    def name(self, index: int) -> str:
        """The row and its file."""
        return f"image {index} in {self.path}"

    def open(self, index: int) -> Image.Image:
        """One row."""
        if not self._mapped:
            self._mapped.append(np.memmap(self.data, np.uint8, "r", self.begin, self.shape))
        pixels = self._mapped[0][index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def members(path: Path) -> set[str]:
    """Names of the arrays in an .npz. UserError if it is truncated or none."""
    try:
        with ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (BadZipFile, OSError) as error:
        raise UserError(f"{path} is truncated, or no .npz: {first_line(error)}") from error


def in_array(path: Path) -> InArray:
    """The images of an .npz, read through once for its checksum.

    UserError if ``arr_0`` is damaged, missing, empty, or no images (N, H, W, 1 or 3) of 8 bits.
    """
    if MEMBER not in members(path):
        raise UserError(
            f"{path} holds no images: an .npz of images has them in {MEMBER}, uint8 (N, H, W, 3)"
        )
    member = f"{MEMBER}.npy"
    try:
        with ZipFile(path) as archive, archive.open(member) as stream:
            shape, in_order, dtype = _header(stream)
            begin = stream.tell()
            _check(path, shape, in_order, dtype)
            info = archive.getinfo(member)
            if info.compress_type == ZIP_STORED:
                while stream.read(1 << 24):
                    pass
                return InArray(path, shape, path, _first_byte(path, info.header_offset) + begin)
            folder = tempfile.TemporaryDirectory(prefix="stepdistill-")
            data = Path(folder.name) / "images"
            with data.open("wb") as unpacked:
                shutil.copyfileobj(stream, unpacked, 1 << 24)
            return InArray(path, shape, data, 0, folder)
    except DAMAGED as error:
        raise UserError(f"{MEMBER} in {path} is damaged: {first_line(error)}") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    return shape, not by_columns, dtype


def _check(path: Path, shape: tuple[int, ...], in_order: bool, dtype: Any) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not in_order:
        raise UserError(
            f"{MEMBER} in {path} is {dtype} {shape}: images are uint8 (N, H, W, 3), or 1 if grey"
        )
    if not shape[0]:
        raise UserError(f"{MEMBER} in {path} is empty: it holds 0 images")


def _first_byte(path: Path, header: int) -> int:
    """Of a stored member: behind its local header, 30 bytes that end in two lengths."""
    with path.open("rb") as stream:
        stream.seek(header + 26)
        name, extra = np.frombuffer(stream.read(4), "<u2").tolist()
    return header + 30 + int(name) + int(extra)
