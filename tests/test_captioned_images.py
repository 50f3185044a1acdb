"""Captioned images from folders, tar shards and ``datasets``: the same ones, and refusals."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from stepdistill.data.captioned_images import load_captioned_images
from stepdistill.data.images import CorruptImageError
from stepdistill.errors import UserError

SIZES = [(6, 4), (3, 9), (5, 5)]  # (height, width)
CAPTIONS = ["a red fox", "drei Möwen", ""]


def pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (*SIZES[index], 3), dtype=np.uint8)


def encoded(index: int, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(index)).save(out, format)
    return out.getvalue()


def folder_with_texts(place: Path) -> str:
    for i, caption in enumerate(CAPTIONS):
        (place / f"{i}.png").write_bytes(encoded(i))
        (place / f"{i}.txt").write_text(caption + "\n")
    return str(place)


def folder_with_json_lines(place: Path) -> str:
    """Not in the order of the names, and with an image that is not listed."""
    (place / "deep").mkdir()
    rows = []
    for i, caption in enumerate(CAPTIONS):
        (place / "deep" / f"{9 - i}.png").write_bytes(encoded(i))
        rows.append(json.dumps({"file_name": f"deep/{9 - i}.png", "text": caption}))
    (place / "unlisted.png").write_bytes(encoded(0))
    (place / "metadata.jsonl").write_text("\n".join(rows) + "\n\n")
    return str(place)


def folder_with_csv(place: Path) -> str:
    lines = ["caption,file_name", *(f'"{c}",{i}.png' for i, c in enumerate(CAPTIONS))]
    for i in range(3):
        (place / f"{i}.png").write_bytes(encoded(i))
    (place / "metadata.csv").write_text("\n".join(lines))
    return str(place)


def write_tar(tar: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(tar, "w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return tar


def sample(i: int, key: str = "") -> dict[str, bytes]:
    key = key or f"./all/{i}.5"  # a dot in the name: the key ends at the first
    return {f"{key}.PNG": encoded(i), f"{key}.mask.png": b"", f"{key}.txt": CAPTIONS[i].encode()}


def tar_folder(place: Path) -> str:
    write_tar(place / "b.tar", sample(2, "c"))
    write_tar(place / "a.tar", sample(0, "all/x") | sample(1, "all/y"))
    return str(place)


def tar_pattern(place: Path) -> str:
    for i, caption in enumerate(CAPTIONS):
        captions = json.dumps({"other": 1, "text": caption}).encode()
        write_tar(place / f"s{i + 8:02}.tar", {"k.json": captions, "k.png": encoded(i)})
    return str(place / "s{08..10}.tar")


def saved(place: Path) -> str:
    rows = {
        "label": [1, 2, 3],
        "caption": CAPTIONS,
        "picture": [Image.fromarray(pixels(i)) for i in range(3)],
    }
    features = datasets.Features(
        {
            "label": datasets.Value("int64"),
            "caption": datasets.Value("string"),
            "picture": datasets.Image(),
        }
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(place / "saved")
    return str(place / "saved")


def saved_bytes(place: Path) -> str:
    rows = {"text": CAPTIONS, "image": [{"bytes": encoded(i), "path": None} for i in range(3)]}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features).save_to_disk(place / "saved")
    return str(place / "saved")


SOURCES = [
    folder_with_texts,
    folder_with_json_lines,
    folder_with_csv,
    tar_folder,
    tar_pattern,
    saved,
    saved_bytes,
]


@pytest.mark.parametrize("write", SOURCES)
def test_every_source_gives_the_same_images(write: Callable[[Path], str], tmp_path: Path) -> None:
    """By index in any order: pixels, captions (an empty one too) and sizes."""
    images = load_captioned_images(write(tmp_path))
    assert len(images) == 3
    for i in (2, 0, 1, 0):
        image, caption = images[i]
        assert caption == CAPTIONS[i]
        assert np.array_equal(np.asarray(image), pixels(i))
        assert images.size(i) == SIZES[i]
    assert images.sizes() == SIZES
    assert [caption for _, caption in images] == CAPTIONS


@pytest.mark.parametrize("write", [folder_with_texts, tar_folder, saved_bytes])
@pytest.mark.parametrize("end", [0, 60])
def test_a_corrupt_image_is_named(
    end: int, write: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a head when sizes are asked for, one cut in its pixels when it is read."""
    whole = encoded
    monkeypatch.setattr(f"{__name__}.encoded", lambda i: whole(i)[:end] if i == 1 else whole(i))
    images = load_captioned_images(write(tmp_path))
    with pytest.raises(CorruptImageError) as refused:
        images[1]
    for words in (images.name(1), str(tmp_path), "is not a readable image", "--skip_corrupt"):
        assert words in str(refused.value)
    assert images[2].caption == ""
    if end == 60:
        assert images.sizes() == SIZES
        return
    with pytest.raises(CorruptImageError):
        images.sizes()
    assert images.sizes(skip_corrupt=True) == [SIZES[0], None, SIZES[2]]


def test_images_are_upright_and_of_three_colours(tmp_path: Path) -> None:
    """A camera's EXIF turns the image, and its size from the head alone; greys become RGB."""
    for orientation, turns in ((1, 0), (6, 3), (3, 2), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
        Image.fromarray(grey).save(tmp_path / "a.webp", lossless=True, exif=exif)
        (tmp_path / "a.txt").write_text("")
        images = load_captioned_images(str(tmp_path))
        image = np.asarray(images[0].image)
        assert images.size(0) == image.shape[:2]
        assert np.array_equal(image, np.rot90(grey, turns)[..., None].repeat(3, 2))


def test_reading_a_tar_reads_its_own_span_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random access: after the index is made, no tar file is walked through again."""
    images = load_captioned_images(tar_folder(tmp_path))
    monkeypatch.setattr(tarfile, "open", None)
    assert [images[i].caption for i in (2, 1, 0)] == CAPTIONS[::-1]


def cut(tar: Path, end: int) -> None:
    tar.write_bytes(tar.read_bytes()[:end])


def damage(tar: Path, at: int) -> None:
    content = bytearray(tar.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    tar.write_bytes(content)


HALVES = {"a.png": encoded(0), "b.txt": b"x"}
TARS: dict[str, tuple[dict[str, bytes], Callable[[Path], object] | None, list[str]]] = {
    "no caption": ({"a.png": b""}, None, ["a in", "has no caption (txt, json)"]),
    "no image": ({"a.txt": b""}, None, ["a in", "has no image (jpg, jpeg, png, webp)"]),
    "two images": (
        {"a.jpg": b"", "a.png": b"", "a.txt": b""},
        None,
        ["has two images: jpg and png"],
    ),
    "twice": ({"a.txt": b"", "b.txt": b"", "a.TXT": b""}, None, ["holds a.TXT twice"]),
    "cut in a file": (sample(0), lambda t: cut(t, 600), ["no readable tar file"]),
    "cut between files": (sample(0), lambda t: cut(t, 1024), ["is cut off"]),
    "damaged head": (sample(0), lambda t: damage(t, 1024 + 148), ["is damaged at byte 1024"]),
    "empty": (sample(0), lambda t: cut(t, 0), ["no readable tar file"]),
    "gone": (sample(0), Path.unlink, ["no readable tar file", "No such file"]),
}


@pytest.mark.parametrize("name", TARS)
def test_tar_files_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    """Named, with the sample; nothing is left out unsaid."""
    files, change, says = TARS[name]
    tar = write_tar(tmp_path / "x.tar", files)
    if change:
        change(tar)
    with pytest.raises(UserError) as refused:
        load_captioned_images(str(tar))
    for words in [str(tar), *says]:
        assert words in str(refused.value)


def test_compressed_tar_files(tmp_path: Path) -> None:
    """They have no random access, whatever they are called."""
    with tarfile.open(tmp_path / "x.tar", "w:gz") as out:
        out.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(UserError, match="unpack it if compressed"):
        load_captioned_images(str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ({"k.txt": b"\xff"}, "the caption of k in .*x.tar is not readable"),
        ({"k.json": b"{torn"}, "the caption of k in .*x.tar is not readable"),
        ({"k.json": b"[1]"}, "must hold an object"),
        ({"k.json": b'{"a": "x"}'}, "has the columns a, and none of prompt, caption, text"),
        ({"k.json": b'{"text": ["x"]}'}, "k in .*x.tar: text must be text, and is a list"),
    ],
    ids=str,
)
def test_captions_in_tar_files_that_cannot_be_used(
    caption: dict[str, bytes], says: str, tmp_path: Path
) -> None:
    images = load_captioned_images(
        str(write_tar(tmp_path / "x.tar", {"k.png": encoded(0), **caption}))
    )
    with pytest.raises(UserError, match=says):
        images[0]


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


FOLDERS: dict[str, tuple[Callable[[Path], str], Callable[[Path], object], list[str]]] = {
    "no caption": (
        folder_with_texts,
        remove("1.txt"),
        ["1 of 3 images in", "have no caption: put 1.txt beside", "/1.png"],
    ),
    "no image": (folder_with_csv, remove("1.png"), ["metadata.csv, line 3 names", "1.png, which"]),
    "two kinds": (
        folder_with_csv,
        lambda p: (p / "metadata.jsonl").write_text("{}"),
        ["has both metadata.jsonl and metadata.csv"],
    ),
    "no file_name": (
        folder_with_texts,
        lambda p: (p / "metadata.jsonl").write_text('{"file": "a", "text": "b"}'),
        ["has the columns file, text, and no file_name"],
    ),
    "no text": (
        folder_with_texts,
        lambda p: (p / "metadata.jsonl").write_text('{"file_name": "a", "b": "b"}'),
        ["and none of prompt, caption, text"],
    ),
    "nothing": (lambda p: str(p), lambda _: None, ["holds no images"]),
    "no pictures": (
        lambda p: (datasets.Dataset.from_dict({"a": [1]}).save_to_disk(p / "s"), str(p / "s"))[1],
        lambda _: None,
        ["has no column of images among a"],
    ),
    "a file": (
        lambda p: (folder_with_texts(p), str(p / "1.png"))[1],
        lambda _: None,
        ["1.png is a file"],
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    """The image or the line is named, before any long work."""
    write, change, says = FOLDERS[name]
    source = write(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as refused:
        load_captioned_images(source)
    for words in [str(tmp_path), *says]:
        assert words in str(refused.value)


def test_columns_by_name(tmp_path: Path) -> None:
    """Of the captions and of the images."""
    source = saved(tmp_path)
    assert load_captioned_images(source, image_column="picture")[0].caption == CAPTIONS[0]
    with pytest.raises(UserError, match=r"the column label of .* holds no images"):
        load_captioned_images(source, image_column="label")
    with pytest.raises(UserError, match="columns label, caption, picture, and no text"):
        load_captioned_images(source, column="text")
    with pytest.raises(UserError, match=r"row 2 of .*: label must be text, and is a int"):
        load_captioned_images(source, column="label")[1]


def named(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set of three images in two splits; the test split's second file is torn,
    and so nothing may read it."""
    kind = {"TEXT": datasets.Value("string"), "image": datasets.Image()}
    rows = {"TEXT": CAPTIONS, "image": [{"bytes": encoded(i), "path": None} for i in range(3)]}
    folder = place / "named"
    folder.mkdir()
    for split, first in (("train", 0), ("test", 1)):
        part = {name: values[first:] for name, values in rows.items()}
        file = folder / f"{split}-00000.parquet"
        datasets.Dataset.from_dict(part, datasets.Features(kind)).to_parquet(file)
    (folder / "test-00001.parquet").write_bytes(b"torn")
    load = datasets.load_dataset

    def by_name(name: str, config: str | None, **given: object) -> object:
        assert name == "someone/pictures"
        return load(str(folder), config, **given)

    monkeypatch.setattr("datasets.load_dataset", by_name)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    return "someone/pictures"


def test_a_column_a_split_and_the_first_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit no file behind the first images is read; without it all are."""
    source = named(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"columns TEXT, image, and none of .* by --column"):
        load_captioned_images(source, limit=3)
    assert len(load_captioned_images(source, "TEXT", limit=9)) == 3
    images = load_captioned_images(source, "TEXT", split="test", limit=2)
    assert [caption for _, caption in images] == CAPTIONS[1:]
    assert np.array_equal(np.asarray(images[1].image), pixels(2))
    assert images.sizes() == SIZES[1:]
    assert len(load_captioned_images(source, "TEXT", split="test", limit=1)) == 1
    with pytest.raises(UserError, match="could not load its split test"):
        load_captioned_images(source, "TEXT", split="test")
    with pytest.raises(UserError, match="the first 3 rows of someone/pictures could not be read"):
        load_captioned_images(source, "TEXT", split="test", limit=3)


def test_images_that_a_stream_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes are fetched with the rows."""
    folder = tmp_path / "images"
    folder.mkdir()
    folder_with_json_lines(folder)
    (folder / "unlisted.png").unlink()
    load = datasets.load_dataset
    monkeypatch.setattr(
        "datasets.load_dataset", lambda _, config, **given: load(str(folder), config, **given)
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = load_captioned_images("someone/pictures", limit=2)
    assert len(images) == 2
    for image, caption in images:
        assert np.array_equal(np.asarray(image), pixels(CAPTIONS.index(caption)))


@pytest.mark.parametrize("write", SOURCES)
def test_the_first_images_of_every_source(write: Callable[[Path], str], tmp_path: Path) -> None:
    """As many as the limit, or all there are; no fewer than one."""
    source = write(tmp_path)
    images = load_captioned_images(source, limit=2)
    assert [caption for _, caption in images] == CAPTIONS[:2]
    assert images.sizes() == SIZES[:2]
    assert len(load_captioned_images(source, limit=9)) == 3
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        load_captioned_images(source, limit=0)


@pytest.mark.parametrize("write", [folder_with_texts, tar_folder, saved])
def test_a_split_of_images_that_have_none(write: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no splits, and so no test: leave --split out"):
        load_captioned_images(write(tmp_path), split="test")


def test_a_column_of_shards_is_of_their_json(tmp_path: Path) -> None:
    """Where a sample has both, as img2dataset writes them; alone the .txt has no columns."""
    both = {"k.png": encoded(0), "k.txt": b"short", "k.json": b'{"long": "told at length"}'}
    source = str(write_tar(tmp_path / "x.tar", both))
    assert load_captioned_images(source)[0].caption == "short"
    assert load_captioned_images(source, column="long")[0].caption == "told at length"
    bare = str(write_tar(tmp_path / "y.tar", {"k.png": encoded(0), "k.txt": b"short"}))
    with pytest.raises(UserError, match=r"has no caption \(json\)"):
        load_captioned_images(bare, column="long")
