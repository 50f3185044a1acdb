"""Images from folders, archives and arrays: what is read, in which order, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from stepdistill.data.images import CorruptImageError
from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.reading import blocks
from stepdistill.evaluation.reading.archives import Pictures, open_pictures
from stepdistill.evaluation.reading.blocks import read
from stepdistill.evaluation.reading.images import decode
from stepdistill.evaluation.reading.measuring import Measured, Reading, Want, measure_images
from stepdistill.metrics.features import Features, Pixels

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def flat(pixels: Pixels) -> Tensor:
    """Of a module, so that a worker can be sent it."""
    return torch.from_numpy(pixels.astype(np.float32)).flatten()


def square(pixels: Pixels) -> Tensor:
    """The image itself."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def mean_and_row(x: Tensor) -> Tensor:
    """(B, 6) of squares: the colour, and that of the first pixel."""
    return torch.cat([x.float().mean((2, 3)), x[:, :, 0, 0].float()], dim=1)


COLOURS = Features("colours", 6, "0", "RGB", square, mean_and_row, batch_size=16)


def noise(count: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def write(folder: Path, images: np.ndarray, form: str = "{:04d}.png") -> Path:
    """One PNG an image; ``form`` may name sub-folders."""
    for i, pixels in enumerate(images):
        file = folder / form.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def zipped(folder: Path, to: Path, **more: bytes) -> Path:
    """A zip of a folder's files, last first, and of others by their names."""
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder))
        for name, content in more.items():
            archive.writestr(name, content)
    return to


def pictures_of(path: Path) -> Pictures:
    pictures = open_pictures(path)
    assert pictures is not None
    return pictures


def colours(path: Path, how: Reading = Reading(), keep: bool = True) -> Measured:  # noqa: B008
    pictures = pictures_of(path)
    return measure_images(pictures, range(len(pictures)), [Want(COLOURS, keep)], how)[0]


def features_of(path: Path, how: Reading = Reading()) -> Tensor:  # noqa: B008
    features = colours(path, how).features
    assert features is not None
    return features


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 40 images in every form that is read."""
    place, images = tmp_path_factory.mktemp("forms"), noise(40)
    folder = write(place / "folder", images, "{0:02d}/img{0:08d}.png")
    json_file = {"dataset.json": json.dumps({"labels": None}).encode()}
    mac = {"__MACOSX/._img.png": b"not an image"}
    with tarfile.open(place / "images.tar", "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(file, file.relative_to(folder))
    np.savez(place / "array.npz", images, np.arange(40))
    np.savez_compressed(place / "packed.npz", images)
    return {
        "folder": folder,
        "zip": zipped(folder, place / "images.zip", **json_file, **mac),
        "tar": place / "images.tar",
        "npz": place / "array.npz",
        "packed": place / "packed.npz",
    }


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "npz", "packed"])
def test_every_form_gives_the_same_images_in_the_same_order(
    forms: dict[str, Path], form: str
) -> None:
    """Whatever the order inside an archive; what is no image there is left alone."""
    expected = mean_and_row(torch.from_numpy(noise(40)).permute(0, 3, 1, 2))
    measured = colours(forms[form])
    assert measured.features is not None
    torch.testing.assert_close(measured.features, expected, rtol=0, atol=0)
    assert measured.record["num_samples"] == 40
    assert measured.record["path"] == str(forms[form])
    torch.testing.assert_close(measured.statistics.mean, expected.double().mean(0))
    torch.testing.assert_close(measured.statistics.covariance, expected.double().T.cov())


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "npz", "packed"])
def test_values_do_not_depend_on_workers(
    forms: dict[str, Path], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread, two and three processes: equal to the last bit at equal batches; batches of
    another size change the rounding of the moments alone."""
    monkeypatch.setattr(blocks, "FEW", 0)
    whole = colours(forms[form], Reading(7, workers=1))
    for workers in (2, 3):
        again = colours(forms[form], Reading(7, workers=workers))
        assert torch.equal(again.statistics.covariance, whole.statistics.covariance)
        assert torch.equal(again.features, whole.features)
    for batch_size in (1, 40, 1000):
        again = colours(forms[form], Reading(batch_size, workers=2))
        assert torch.equal(again.features, whole.features)
        torch.testing.assert_close(
            again.statistics.covariance, whole.statistics.covariance, rtol=1e-12, atol=1e-12
        )


def test_reading_draws_nothing(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images measured in the middle of a training run do not change its random numbers."""
    monkeypatch.setattr(blocks, "FEW", 0)
    before = torch.get_rng_state()
    colours(forms["folder"], Reading(7, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_processes_that_are_spawned(forms: dict[str, Path], tmp_path: Path) -> None:
    """Where processes start from nothing, as on a Mac and in Windows, the same features come back:
    everything that a worker is given can be sent to it."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_eval_images as own
        from stepdistill.evaluation.reading import blocks
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            blocks.FEW = 0
            for path in sys.argv[1:]:
                how = own.Reading(20, workers=2)
                print(own.features_of(Path(path), how).double().sum().item())
        """)
    )
    wanted = [forms[form] for form in ("folder", "packed")]
    ran = subprocess.run(
        [sys.executable, program, *wanted], capture_output=True, text=True, check=True
    )
    for line, path in zip(ran.stdout.split(), wanted, strict=True):
        assert float(line) == float(features_of(path).double().sum())


def test_each_image_is_decoded_once_for_all_extractors(
    forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two extractors of unlike modes see each file once, and each sees what it would alone."""
    greys = Features("greys", 64, "1", "L", flat, lambda x: x)
    opened: list[int] = []
    pictures = pictures_of(forms["folder"])
    before = type(pictures).open
    monkeypatch.setattr(type(pictures), "open", lambda self, i: opened.append(i) or before(self, i))
    both = measure_images(pictures, range(40), [Want(COLOURS), Want(greys, True)], Reading(7))
    assert sorted(opened) == list(range(40))
    alone = measure_images(pictures, range(40), [Want(greys, True)], Reading(7))[0]
    assert torch.equal(both[1].features, alone.features)
    files = sorted(forms["folder"].rglob("*.png"))
    expected = torch.stack([flat(np.array(Image.open(file).convert("L"))) for file in files])
    assert torch.equal(alone.features, expected)
    colour = colours(forms["folder"], Reading(7))
    assert torch.equal(both[0].statistics.mean, colour.statistics.mean)


def kinds(folder: Path) -> dict[str, Path]:
    """A file of each kind that is converted, as a camera or a program may write them."""
    folder.mkdir()
    colour, grey = noise(1, 9, 12)[0], noise(1, 9, 12, 1)[0, :, :, 0]
    image = Image.fromarray(colour)
    corner = tuple(colour[0, 0].tolist())
    alpha = Image.fromarray(np.dstack([colour, grey]))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    save: dict[str, Callable[[Path], None]] = {
        "grey.png": Image.fromarray(grey).save,
        "bits.png": Image.fromarray(grey > 127).save,
        "palette.png": image.quantize(16).save,
        "alpha.png": alpha.save,
        "opaque.png": Image.fromarray(np.dstack([colour, np.full_like(grey, 255)])).save,
        "grey_alpha.png": alpha.convert("LA").save,
        "clear_colour.png": lambda file: image.save(file, transparency=corner),
        "clear_palette.png": lambda file: image.quantize(16).save(file, transparency=3),
        "cmyk.jpg": image.convert("CMYK").save,
        "exif.jpg": lambda file: image.save(file, exif=turned),
        "photo.webp": image.save,
        "scan.tif": image.save,
        "plain.ppm": image.save,
    }
    for name, how in save.items():
        how(folder / name)
    return {name: folder / name for name in save}


@pytest.mark.filterwarnings("ignore")
def test_all_kinds_of_images_are_decoded_as_clean_fid_does(tmp_path: Path) -> None:
    """Grey, one bit, palette, alpha, CMYK, an EXIF orientation: its reader's pixels, bit for bit,
    and its choice of files in its order."""
    from cleanfid.fid import get_folder_features
    from cleanfid.resize import build_resizer

    folder = tmp_path / "kinds"
    files = kinds(folder)
    resize = build_resizer("clean")
    theirs = get_folder_features(
        str(folder),
        lambda x: x.flatten(1)[:, ::7777],
        num_workers=0,
        device=torch.device("cpu"),
        verbose=False,
    )
    own = [resize(decode(file, "RGB")).transpose(2, 0, 1) for file in sorted(files.values())]
    expected = np.stack([x.reshape(-1)[::7777] for x in own])
    np.testing.assert_array_equal(expected, theirs)
    pictures = pictures_of(folder)
    assert [pictures.name(i) for i in range(len(pictures))] == sorted(map(str, files.values()))
    assert decode(files["exif.jpg"], "RGB").shape == (9, 12, 3)  # not turned


def test_transparent_images_are_noted(tmp_path: Path) -> None:
    """Once, with their count; an alpha channel that is opaque everywhere is no news."""
    kinds(tmp_path / "kinds")
    by_size = Features("sizes", 1, "0", "RGB", lambda p: flat(p)[:2], lambda x: x)
    pictures = pictures_of(tmp_path / "kinds")
    measured = measure_images(pictures, range(len(pictures)), [Want(by_size)], Reading(4))[0]
    said = [note for note in measured.notes if "alpha channels" in note]
    assert len(said) == 1
    assert "kinds: 4 images are transparent in places" in said[0]
    write(tmp_path / "plain", noise(3))
    assert not [note for note in colours(tmp_path / "plain").notes if "alpha channels" in note]


def sixteen_bits(mode: str) -> bytes:
    """A PNG with 16 bits a channel: grey, or colour, which PIL alone cannot write."""
    if mode == "L":
        out = io.BytesIO()
        Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(out, "PNG")
        return out.getvalue()
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return PngImagePlugin._MAGIC + b"".join(parts)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_16_bits_are_refused(tmp_path: Path, mode: str, form: str) -> None:
    """Grey ones, which PIL would turn white, and colour ones, which it rounds without a word; the
    file or the member is named, and ``skip_corrupt`` does not hide it."""
    folder = write(tmp_path / "deep", noise(5))
    (folder / "0003.png").write_bytes(sixteen_bits(mode))
    path = folder if form == "folder" else zipped(folder, tmp_path / "deep.zip")
    with pytest.raises(UserError, match=r"0003\.png(?: in .*deep.zip)? has more than 8 bits"):
        colours(path, Reading(skip_corrupt=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_images_of_several_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """An extractor that resizes takes them; one that does not refuses the first other size, by
    name, in a batch and between batches."""
    monkeypatch.setattr(blocks, "FEW", 0)
    folder = write(tmp_path / "sizes", noise(9))
    Image.fromarray(noise(1, 8, 10)[0]).save(folder / "0005.png")
    with pytest.raises(UserError, match=r"0005\.png is 10x8, and the first is 8x8"):
        colours(folder, Reading(9, workers=workers))
    with pytest.raises(UserError, match=r"is 10x8, and the first is 8x8"):
        colours(folder, Reading(1, workers=workers))
    corner = Features("corner", 3, "0", "RGB", lambda p: square(p)[:, 0, 0].float(), lambda x: x)
    pictures = pictures_of(folder)
    measured = measure_images(pictures, range(9), [Want(corner)], Reading(9, workers=workers))
    assert measured[0].statistics.count == 9


def damage(form: str, place: Path) -> tuple[Path, str]:
    """Ten images, the fifth unreadable, and what names it."""
    folder = write(place / "bad", noise(10))
    whole = (folder / "0004.png").read_bytes()
    if form in ("folder", "member"):
        (folder / "0004.png").write_bytes(whole[: len(whole) // 2])
    if form == "folder":
        return folder, r"bad/0004\.png is not a readable image"
    path = zipped(folder, place / "bad.zip")
    if form == "checksum":
        content = bytearray(path.read_bytes())
        content[content.index(whole) + len(whole) // 2] ^= 255
        path.write_bytes(content)
    return path, r"0004\.png in .*bad\.zip is not a readable image"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", ["folder", "member", "checksum"])
def test_unreadable_images(
    tmp_path: Path, form: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut file, a cut member, a member whose bytes have changed: named, with its archive, in a
    sentence; when asked, left out and counted, and the value is that of the others."""
    monkeypatch.setattr(blocks, "FEW", 0)
    path, said = damage(form, tmp_path)
    with pytest.raises(CorruptImageError, match=said):
        colours(path, Reading(3, workers=workers))
    measured = colours(path, Reading(3, skip_corrupt=True, workers=workers))
    assert (measured.record["num_samples"], measured.record["skipped"]) == (9, 1)
    kept = mean_and_row(torch.from_numpy(np.delete(noise(10), 4, 0)).permute(0, 3, 1, 2))
    assert torch.equal(measured.features, kept)


def test_the_first_unreadable_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, whichever process met one first."""
    monkeypatch.setattr(blocks, "FEW", 0)
    folder = write(tmp_path / "bad", noise(30))
    for i in (11, 12, 25):
        (folder / f"{i:04d}.png").write_bytes(b"")
    for workers in (1, 2, 3):
        with pytest.raises(CorruptImageError, match=r"0011\.png"):
            colours(folder, Reading(2, workers=workers))


def test_damaged_and_empty_archives(tmp_path: Path) -> None:
    """Each gets a sentence with its name before any work."""
    folder = write(tmp_path / "folder", noise(4))
    np.savez(tmp_path / "whole.npz", noise(40))
    np.savez_compressed(tmp_path / "packed.npz", noise(40))
    zipped(folder, tmp_path / "whole.zip")
    for name in ("whole.zip", "whole.npz"):
        content = (tmp_path / name).read_bytes()
        cut = tmp_path / name.replace("whole", "cut")
        cut.write_bytes(content[: len(content) // 2])
        (tmp_path / name.replace("whole", "none")).write_bytes(b"")
    for name in ("whole.npz", "packed.npz"):
        content = bytearray((tmp_path / name).read_bytes())
        content[2000] ^= 255
        (tmp_path / name.replace(".npz", "-changed.npz")).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("dataset.json", "{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("not a tar")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as packed:
        packed.add(folder)
    np.savez(tmp_path / "floats.npz", noise(4) / 255)
    np.savez(tmp_path / "alpha.npz", noise(4, 8, 8, 4))
    np.savez(tmp_path / "one.npz", noise(4)[0])
    np.savez(tmp_path / "zero.npz", noise(4)[:0])
    for name, said in {
        "cut.zip": r"cut\.zip is truncated, or no zip",
        "none.zip": r"none\.zip is truncated, or no zip",
        "empty.zip": r"empty\.zip holds no images \(\.bmp",
        "empty": r"empty holds no images",
        "text.tar": r"text\.tar is truncated, compressed, or no tar",
        "packed.tar.gz": r"packed\.tar\.gz is truncated, compressed, or no tar.*unpack it",
        "cut.npz": r"cut\.npz is truncated, or no \.npz",
        "none.npz": r"none\.npz is truncated, or no \.npz",
        "whole-changed.npz": r"arr_0 in .*whole-changed\.npz is damaged: .*CRC",
        "packed-changed.npz": r"arr_0 in .*packed-changed\.npz is damaged",
        "floats.npz": r"arr_0 in .*floats\.npz is float64 \(4, 8, 8, 3\): images are uint8",
        "alpha.npz": r"arr_0 in .*alpha\.npz is uint8 \(4, 8, 8, 4\): images are uint8",
        "one.npz": r"arr_0 in .*one\.npz is uint8 \(8, 8, 3\)",
        "zero.npz": r"arr_0 in .*zero\.npz is empty",
    }.items():
        with pytest.raises(UserError, match=said):
            open_pictures(tmp_path / name)
    assert open_pictures(tmp_path / "absent.zip") is None


def test_a_locked_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member with a password is named."""
    path = zipped(write(tmp_path / "folder", noise(3)), tmp_path / "locked.zip")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")  # of the first entry of the directory
    content[at + 8] |= 1  # encrypted
    local = content.index(b"PK\x03\x04")
    content[local + 6] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0002\.png in .*locked\.zip is not .*(password|encrypt)"):
        colours(path)


def end_the_process(pixels: Pixels) -> Tensor:
    """As the system does where memory runs out."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return flat(pixels)


def test_a_process_that_is_ended(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a sentence that names the option."""
    monkeypatch.setattr(blocks, "FEW", 0)
    ending = Features("ending", 6, "0", "RGB", end_the_process, lambda x: x)
    with pytest.raises(StepDistillError, match=r"process that decodes .* fewer --workers"):
        list(read(pictures_of(forms["folder"]), range(40), [ending], 8, workers=2))


def test_no_memory_for_a_batch(forms: dict[str, Path]) -> None:
    """Is a sentence with the option and the number that failed."""

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pictures = pictures_of(forms["folder"])
    want = Want(Features("large", 6, "0", "RGB", square, full))
    with pytest.raises(StepDistillError, match=r"16 images at a time through large.*below 16"):
        measure_images(pictures, range(40), [want], Reading(16))


def test_no_more_is_read_than_is_asked_for(forms: dict[str, Path]) -> None:
    """Blocks are made while others are used, and no more than two ahead of the reader."""
    made: list[int] = []

    def counted(pixels: Pixels) -> Tensor:
        made.append(1)
        return flat(pixels)

    slow = Features("slow", 192, "0", "RGB", counted, lambda x: x)
    for taken, _ in enumerate(read(pictures_of(forms["folder"]), range(40), [slow], 4, workers=1)):
        assert len(made) <= 4 * (taken + 1 + blocks.AHEAD)


def chosen(pictures: Pictures, indices: Sequence[int]) -> Tensor:
    features = measure_images(pictures, indices, [Want(COLOURS, True)], Reading(5))[0].features
    assert features is not None
    return features


@pytest.mark.parametrize("form", ["zip", "tar", "packed"])
def test_any_rows_of_an_archive(forms: dict[str, Path], form: str) -> None:
    """As the images of A are drawn."""
    rows = [3, 4, 11, 30, 39]
    pictures = pictures_of(forms[form])
    assert torch.equal(chosen(pictures, rows), chosen(pictures, range(40))[rows])
