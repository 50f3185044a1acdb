"""Where images lie: a folder, a zip or a tar of image files, or an array in an .npz.

Each is a list in a fixed order that can be sent to another process: it holds names, and opens what
it reads there.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar
from zipfile import BadZipFile, ZipFile

from PIL import Image

from ...errors import UserError, first_line
from ...metrics.features import digest
from .arrays import MEMBER, in_array, members
from .images import DAMAGED, opened, unreadable

T = TypeVar("T")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff")
)  # of clean-fid, but for .npy


class Pictures(Protocol):
    """Images in a fixed order."""

    @property
    def path(self) -> Path:
        """What holds them."""

    def __len__(self) -> int:
        """How many."""

    def name(self, index: int) -> str:
        """What a message calls one."""

    def open(self, index: int) -> Image.Image:
        """One of them. CorruptImageError if it cannot be read, UserError if it may not be."""


@dataclass(frozen=True)
class InFolder:
    """Image files below a folder."""

    path: Path
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.files[index])

    def open(self, index: int) -> Image.Image:
        """Read the file."""
        return opened(self.files[index], self.name(index))


@dataclass(frozen=True)
class InZip:
    """Image files in a zip, as StyleGAN's and EDM's tools write it."""

    path: Path
    members: Sequence[str]
    # one a process: a fork shares the place that is read next with its parent
    _handles: dict[int, ZipFile] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """The member and its zip."""
        return f"{self.members[index]} in {self.path}"

    def open(self, index: int) -> Image.Image:
        """Read the member, its checksum too."""
        name = self.name(index)
        try:
            archive = self._handles.get(os.getpid()) or ZipFile(self.path)
            self._handles[os.getpid()] = archive
            content = archive.read(self.members[index])
        except DAMAGED as error:
            raise unreadable(name, error) from error
        return opened(BytesIO(content), name)


@dataclass(frozen=True)
class InTar:
    """Image files in a tar that is not compressed."""

    path: Path
    members: Sequence[tuple[str, int, int]]  # name, first byte, bytes

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """The member and its tar."""
        return f"{self.members[index][0]} in {self.path}"

    def open(self, index: int) -> Image.Image:
        """Read the member."""
        _, begin, size = self.members[index]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return opened(BytesIO(stream.read(size)), self.name(index))


def open_pictures(path: Path) -> Pictures | None:
    """The images in a folder, a zip, a tar or an .npz; None if ``path`` is none of these.

    UserError if there are no images in it, or it is damaged.
    """
    if path.is_dir():
        return in_folder(path)
    if not path.is_file():
        return None
    if path.suffix == ".zip":
        return in_zip(path)
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return in_tar(path)
    return in_array(path) if path.suffix == ".npz" and MEMBER in members(path) else None


def in_folder(path: Path) -> InFolder:
    """All images below a folder, sorted by path. UserError if there are none."""
    if not path.is_dir():
        raise UserError(f"there is no folder of images at {path}")
    found = path.rglob("*")
    files = sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.is_dir())
    return InFolder(path, _some(path, files))


def in_zip(path: Path) -> InZip:
    """All images of a zip, sorted by name; dataset.json is not one. UserError if there are none."""
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError) as error:
        raise UserError(f"{path} is truncated, or no zip: {first_line(error)}") from error
    images = (name for name in names if _is_image(name))
    return InZip(path, _some(path, sorted(images)))


def in_tar(path: Path) -> InTar:
    """All images of a tar, sorted by name. UserError if there are none, or it is compressed."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = [m for m in archive if m.isfile() and _is_image(m.name)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is truncated, compressed, or no tar ({first_line(error)}): unpack it, and "
            "give the folder"
        ) from error
    return InTar(path, _some(path, sorted((m.name, m.offset_data, m.size) for m in files)))


def content_sha256(pictures: Pictures) -> str:
    """SHA-256 of an archive as ``sha256sum`` prints it; of a folder, of the lines that it prints of
    the images in order, by their places in the folder. A file that cannot be opened, and so is left
    out or stops it all when it is decoded, has "unreadable" for its hash.
    """
    if not isinstance(pictures, InFolder):
        return digest(pictures.path)
    running = sha256()
    for file in pictures.files:
        place = file.relative_to(pictures.path).as_posix()
        try:
            own = digest(file)
        except OSError:
            own = "unreadable"
        running.update(f"{own}  {place}\n".encode())
    return running.hexdigest()


def _is_image(member: str) -> bool:
    """Of an archive's member. ``__MACOSX/`` holds what a Mac notes about files, by their names."""
    return Path(member).suffix.lower() in SUFFIXES and not member.startswith("__MACOSX/")


def _some(path: Path, found: list[T]) -> list[T]:
    if not found:
        raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found
