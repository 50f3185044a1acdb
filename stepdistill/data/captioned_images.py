"""Images with captions, by index: from a folder, tar shards (webdataset) or ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from ..errors import UserError
from .caption_folder import load_caption_folder
from .hub import check_no_split, is_saved
from .hub_images import load_hub_images
from .images import CorruptImageError, decoded, readable
from .tar_shards import load_tar_shards, tar_files

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class CaptionedImage(NamedTuple):
    """An upright RGB image (transparency dropped) and its caption, which may be empty."""

    image: Image.Image
    caption: str


class CaptionSource(Protocol):
    """Where captioned images lie: encoded images and captions by index."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What an error calls the image."""
        ...

    def image(self, index: int) -> Path | IO[bytes]:
        """The encoded image; a CorruptImageError if there is none."""
        ...

    def caption(self, index: int) -> str:
        """UserError if it is no text."""
        ...


@dataclass(frozen=True)
class CaptionedImages:
    """The decoded images of ``source``, in its fixed order, or the first ``limit`` of them.

    CorruptImageError names a damaged one. Nothing is decoded before it is asked for: of millions of
    images that would take a day.
    """

    place: str
    source: CaptionSource
    limit: int | None = None

    def __len__(self) -> int:
        return len(range(len(self.source))[: self.limit])

    def __getitem__(self, index: int) -> CaptionedImage:
        return CaptionedImage(self._image(index), self.source.caption(index))

    def __iter__(self) -> Iterator[CaptionedImage]:
        return (self[index] for index in range(len(self)))

    def name(self, index: int) -> str:
        """What the image is called: its file, its place in a tar file, its row."""
        return self.source.name(index)

    def size(self, index: int) -> Size:
        """Of the upright image, from the head of its file alone."""
        with readable(self.name(index)), Image.open(self.source.image(index)) as image:
            width, height = image.size
            # a PNG may have its EXIF after its pixels: they are taken as they lie
            turned = image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation)
            return Size(width, height) if turned in SIDEWAYS else Size(height, width)

    def sizes(self, skip_corrupt: bool = False) -> list[Size | None]:
        """Of all images. An unreadable head is a CorruptImageError, or None on request."""
        return [self._size(i, skip_corrupt) for i in tqdm(range(len(self)), "sizes", disable=None)]

    def _size(self, index: int, skip_corrupt: bool) -> Size | None:
        try:
            return self.size(index)
        except CorruptImageError:
            if not skip_corrupt:
                raise
            return None

    def _image(self, index: int) -> Image.Image:
        name = self.name(index)
        image = decoded(self.source.image(index), name)
        with readable(name):
            upright = image if image.format == "PNG" else ImageOps.exif_transpose(image)
            return upright.convert("RGB")


def load_captioned_images(
    source: str,
    column: str | None = None,
    image_column: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> CaptionedImages:
    """Find the captioned images of ``source``, and check that each image has a caption:

    - FOLDER with name.jpg + name.txt, or with metadata.jsonl / .csv of file_name and text;
    - FOLDER of tar shards, FILE.tar or a pattern such as {000..099}.tar: webdataset's jpg, png or
      webp + txt or json;
    - NAME or NAME:CONFIG of ``datasets``, or a folder it has saved.

    ``column`` is the caption's, by default the first of prompt, caption, text. With ``limit`` there
    are no more images than that, and of a NAME no more are downloaded. UserError if there is no
    such source, split or column, or an image without a caption.
    """
    folder = Path(source)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if tars := tar_files(source):
        check_no_split(source, split)
        found: CaptionSource = load_tar_shards(tars, column)
    elif folder.is_dir() and not is_saved(folder):
        check_no_split(source, split)
        found = load_caption_folder(folder, column)
    elif folder.is_file():
        raise UserError(f"{source} is a file: give a folder of images, a .tar or a datasets name")
    else:
        found = load_hub_images(source, split, image_column, column, limit)
    if not len(found):
        raise UserError(f"{source} holds no images")
    return CaptionedImages(source, found, limit)
