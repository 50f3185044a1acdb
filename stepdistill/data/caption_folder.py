"""A folder of images with captions: name.jpg + name.txt, or one metadata file for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .images import image_files
from .tables import choose_column, open_table, text_of

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as datasets' imagefolder


@dataclass(frozen=True)
class CaptionFolder:
    """``captions`` by index, or None if they lie beside the images."""

    files: tuple[Path, ...]
    captions: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def image(self, index: int) -> Path:
        """The file."""
        return self.files[index]

    def caption(self, index: int) -> str:
        """From the metadata, or read from the file beside."""
        if self.captions is not None:
            return self.captions[index]
        file = self.files[index].with_suffix(".txt")
        try:
            return file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the caption {file} as UTF-8 text: {error}") from error


def load_caption_folder(folder: Path, column: str | None) -> CaptionFolder:
    """The images that the metadata names, in its order; without metadata all below, sorted.

    UserError for one that is not there, or has no caption.
    """
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise UserError(f"{folder} has both {metadata[0].name} and {metadata[1].name}: keep one")
    return _listed(metadata[0], column) if metadata else _beside(folder, column)


def _listed(metadata: Path, column: str | None) -> CaptionFolder:
    table = open_table(str(metadata))
    file_name = choose_column(table.place, table.columns, "file_name")
    column = choose_column(table.place, table.columns, column)
    files, captions = [], []
    for number, values in table.read([file_name, column]):
        if values is None:
            continue  # an empty line
        where = f"{metadata}, {table.unit} {number}"
        file = metadata.parent / text_of(values[0], file_name, where)
        if not file.is_file():
            raise UserError(f"{where} names {file}, which is not there")
        files.append(file)
        captions.append(text_of(values[1], column, where))
    return CaptionFolder(tuple(files), tuple(captions))


def _beside(folder: Path, column: str | None) -> CaptionFolder:
    files = image_files(folder)
    bare = [file for file in files if not file.with_suffix(".txt").is_file()]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(files)} images in {folder} have no caption: put "
            f"{bare[0].stem}.txt beside {bare[0]}, or a metadata.jsonl into the folder"
        )
    if column is not None:
        raise UserError(f"{folder} has captions in .txt files, no column {column}: leave it out")
    return CaptionFolder(tuple(files), None)
