"""Image folders: classes by number or by name, sizes, bit depths, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.data.images import load_image_folder, read_image
from stepdistill.errors import UserError

SHAPE = (1, 4, 4)


def picture(file: Path, value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(file)
    return file


def test_numbered_folders_are_those_classes(tmp_path: Path) -> None:
    """Folders 2, 10 and 0 are classes 2, 10 and 0: text order would make them 2, 1 and 0."""
    for name in ("0", "2", "10"):
        picture(tmp_path / name / "a.png", int(name))
    images = load_image_folder(tmp_path, SHAPE)
    x0, cond = images.fetch([0, 1, 2])
    values = ((x0[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert torch.equal(cond["class_labels"], values)
    assert images.classes == {0: "0", 2: "2", 10: "10"}
    with pytest.raises(UserError, match="10 would be class 10"):
        images.for_model(10)
    assert images.for_model(11) is images


def test_named_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    """Also of a class whose only image is unreadable: leaving it out renames no other class."""
    for name in ("dog", "cat", "eel"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "cat" / "a.png").write_bytes(b"torn")
    images = load_image_folder(tmp_path, SHAPE, skip_corrupt=True)
    assert images.labels == (1, 2)
    assert images.classes == {0: "cat", 1: "dog", 2: "eel"}
    assert images.skipped == (tmp_path / "cat" / "a.png",)
    assert "1 unreadable left out" in images.describe()


def test_labels_of_an_unconditional_model(tmp_path: Path) -> None:
    """It takes none; a flat folder serves no model of classes."""
    picture(tmp_path / "deep" / "er" / "a.png")
    images = load_image_folder(tmp_path, SHAPE).for_model(None)
    assert images.fetch([0])[1].batch_size == 1
    assert not images.fetch([0])[1]
    picture(tmp_path / "deep" / "b.png")
    with pytest.raises(UserError, match="no class sub-folders"):
        load_image_folder(tmp_path / "deep" / "er", SHAPE).for_model(10)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_every_cut_of_a_file_is_read_or_named(suffix: str, tmp_path: Path) -> None:
    """A file cut off anywhere gives its pixels or a UserError that names it, no other error."""
    whole = tmp_path / f"whole.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    data, refused = whole.read_bytes(), 0
    for end in range(0, len(data), max(1, len(data) // 60)):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[:end])
        try:
            assert read_image(cut, (3, 16, 16)).shape == (3, 16, 16)
        except UserError as error:
            refused += str(cut) in str(error)
    assert refused > 30


def test_values_sizes_and_bit_depths(tmp_path: Path) -> None:
    """0 to 255 is -1 to 1; other sizes are resized; 16-bit greys keep their shade."""
    for value in (0, 51, 255):
        x0 = read_image(picture(tmp_path / "a.png", value), (3, 8, 2))
        assert x0.shape == (3, 8, 2)
        torch.testing.assert_close(x0, torch.full_like(x0, value / 127.5 - 1))
    Image.fromarray(np.full((4, 4), 51 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    x0 = read_image(tmp_path / "deep.png", SHAPE)
    torch.testing.assert_close(x0, torch.full_like(x0, 51 / 127.5 - 1))
