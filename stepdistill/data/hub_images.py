"""Captioned images of the ``datasets`` library: a column of images and one of captions."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from .hub import load_rows, optional
from .images import CorruptImageError
from .tables import choose_column, text_of


@dataclass(frozen=True)
class HubImages:
    """``images`` and ``captions`` are datasets of one column each, the images not decoded."""

    source: str
    images: Any
    captions: Any
    image_column: str
    caption_column: str

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The row, from 1."""
        return f"row {index + 1} of {self.source}"

    def image(self, index: int) -> Path | IO[bytes]:
        """The bytes in the row, or the file that it names."""
        value = self.images[index][self.image_column]
        if value is None:
            raise CorruptImageError(f"{self.name(index)} has no image: give --skip_corrupt")
        return io.BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"])

    def caption(self, index: int) -> str:
        """The text in the row."""
        value = self.captions[index][self.caption_column]
        return text_of(value, self.caption_column, self.name(index))


def load_hub_images(
    source: str, split: str, image_column: str | None, column: str | None
) -> HubImages:
    """The images of the first column that holds some, or of ``image_column``."""
    rows = load_rows(source, split)
    kind = optional("datasets", source).Image
    holding = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    if image_column is None and not holding:
        raise UserError(
            f"{source} has no column of images among {', '.join(rows.column_names)}: "
            "choose another dataset"
        )
    image_column = choose_column(source, rows.column_names, image_column, holding)
    if image_column not in holding:
        raise UserError(f"the column {image_column} of {source} holds no images")
    column = choose_column(source, rows.column_names, column)
    images = rows.select_columns([image_column]).cast_column(image_column, kind(decode=False))
    return HubImages(source, images, rows.select_columns([column]), image_column, column)
