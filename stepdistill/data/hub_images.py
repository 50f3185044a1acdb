"""Captioned images of the ``datasets`` library: a column of images and one of captions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..errors import UserError, first_line
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
    source: str,
    split: str | None,
    image_column: str | None,
    column: str | None,
    limit: int | None = None,
) -> HubImages:
    """The images of the first column that holds some, or of ``image_column``.

    With ``limit`` no more of a name than its first rows is downloaded.
    """
    datasets = optional("datasets", source)
    rows = load_rows(source, split, streaming=limit is not None)
    features = rows.features or {}  # a stream of texts alone may not know its own
    holding = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if image_column is None and not holding:
        raise UserError(
            f"{source} has no column of images among {', '.join(features)}: choose another dataset"
        )
    image_column = choose_column(source, [*features], image_column, holding)
    if image_column not in holding:
        raise UserError(f"the column {image_column} of {source} holds no images")
    column = choose_column(source, [*features], column)
    rows = rows.select_columns([image_column, column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    if limit is not None and isinstance(rows, datasets.IterableDataset):
        rows = _downloaded(source, rows, image_column, limit)
    images, captions = rows.select_columns([image_column]), rows.select_columns([column])
    return HubImages(source, images, captions, image_column, column)


def _downloaded(source: str, rows: Any, image_column: str, count: int) -> Any:
    """The first rows of a stream as a Dataset, kept where ``datasets`` keeps its downloads."""
    datasets = optional("datasets", source)
    given = {"rows": rows, "image_column": image_column, "count": count}
    try:
        return datasets.Dataset.from_generator(_first, features=rows.features, gen_kwargs=given)
    except Exception as error:  # of the network, of the files: the library raises many kinds
        why = first_line(error.__cause__ or error)
        raise UserError(f"the first {count} rows of {source} could not be read: {why}") from error


def _first(rows: Any, image_column: str, count: int) -> Iterator[dict[str, Any]]:
    """With the bytes of images that the rows only name, which lie where the stream comes from."""
    for row in islice(rows, count):  # take() opens the files behind them too
        image = row[image_column]
        if image is not None and image["bytes"] is None:
            with optional("fsspec", image["path"]).open(image["path"], "rb") as file:
                row = {**row, image_column: {"bytes": file.read(), "path": None}}
        yield row
