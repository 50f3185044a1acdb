"""References: what is written and read, of whom, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_eval_images import COLOURS, colours, noise, write, zipped

from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.reading.archives import content_sha256, open_pictures
from stepdistill.evaluation.reading.measuring import Reading, Want
from stepdistill.evaluation.references.reference import OfBoth, OfImages, load_reference
from stepdistill.evaluation.references.stored import (
    Stored,
    check_one_each,
    save_reference,
)
from stepdistill.metrics.frechet import Statistics


def gaussian(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a covariance of full rank."""
    rows = np.random.default_rng(seed).normal(size=(4 * size, size))
    return rows.mean(0), np.cov(rows, rowvar=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "folder", noise(30))


@pytest.mark.parametrize("keep", [True, False])
def test_a_reference_comes_back(folder: Path, tmp_path: Path, keep: bool) -> None:
    """To the last bit, with what it is of; the features too where they were kept."""
    measured = colours(folder, keep=keep)
    file = tmp_path / "reference.safetensors"
    save_reference(file, measured, COLOURS, measured.record)
    reference = load_reference(file)
    statistics = reference.statistics(COLOURS)
    assert torch.equal(statistics.mean, measured.statistics.mean)
    assert torch.equal(statistics.covariance, measured.statistics.covariance)
    assert statistics.count == 30
    kept = reference.features(COLOURS)
    assert (kept is not None) == keep
    assert not keep or torch.equal(kept, measured.features)
    assert torch.equal(Statistics.load(file).mean, statistics.mean)
    with safe_open(file, "pt") as opened:
        told = opened.metadata()
    assert (told["extractor"], told["extractor_sha256"], told["resize"]) == ("colours", "0", "none")
    assert json.loads(told["source"])["path"] == str(folder)
    record = reference.record()
    assert (record["num_samples"], record["path"]) == (30, str(file))


def test_the_hash_of_a_folder(folder: Path, tmp_path: Path) -> None:
    """What ``sha256sum`` prints of the files in order, hashed: other pixels, names or a file more
    change it; another place of the folder does not.
    """
    pictures = open_pictures(folder)
    assert pictures is not None
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder)}\n" for f in files]
    own = content_sha256(pictures)
    assert own == sha256("".join(lines).encode()).hexdigest()
    assert load_reference(folder).record()["sha256"] == own
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert content_sha256(open_pictures(moved)) == own
    (moved / files[0].relative_to(folder)).rename(moved / "zebra.png")
    assert content_sha256(open_pictures(moved)) != own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "tones"}, r"of another extractor \(colours, and this is tones\)"),
        ({"sha256": "f"}, r"of another weights \(0, and this is f\)"),
        ({"resize": "299x299"}, r"of another preprocessing \(none, and this is 299x299\)"),
    ],
)
def test_a_reference_of_another_extractor(
    folder: Path, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    """Other weights and another resize are another extractor, though the size is the same."""
    file = tmp_path / "reference.safetensors"
    save_reference(file, colours(folder), COLOURS, {})
    other = replace(COLOURS, **change)
    reference = load_reference(file)
    for ask in (reference.statistics, reference.features):
        with pytest.raises(UserError, match=said):
            ask(other)


def test_a_reference_of_another_size(tmp_path: Path) -> None:
    """Files that do not say what they are of are refused by the number of their features."""
    mean, covariance = gaussian(5)
    np.savez(tmp_path / "five.npz", mu=mean, sigma=covariance)
    with pytest.raises(UserError, match=r"five\.npz holds statistics of 5 features, and colours"):
        load_reference(tmp_path / "five.npz").statistics(COLOURS)


def test_an_older_file_stays_where_writing_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves the reference that was there, and nothing beside it."""
    file = tmp_path / "place" / "reference.safetensors"
    file.parent.mkdir()
    measured = colours(folder)
    save_reference(file, measured, COLOURS, {})
    before = file.read_bytes()

    def full(tensors: object, path: Path, told: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("stepdistill.files.save_file", full)
    with pytest.raises(StepDistillError, match="No space left"):
        save_reference(file, measured, COLOURS, {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def pickled(path: Path, statistics: object) -> None:
    """As EDM2's program writes its references."""
    with path.open("wb") as stream:
        pickle.dump(statistics, stream)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_edm2s_references(tmp_path: Path, protocol: int) -> None:
    """A pickle of the statistics of both its extractors: each gets its own."""
    (m, s), (n, r) = gaussian(6), gaussian(6, seed=1)
    held = {"num_images": 50_000, "fid": {"mu": m, "sigma": s}, "fd_dinov2": {"mu": n, "sigma": r}}
    file = tmp_path / "img512.pkl"
    file.write_bytes(pickle.dumps(held, protocol=protocol))
    reference = load_reference(file)
    for name, mean, covariance in (("inception-tf", m, s), ("dinov2", n, r)):
        statistics = reference.statistics(replace(COLOURS, name=name))
        np.testing.assert_array_equal(statistics.mean.numpy(), mean)
        np.testing.assert_array_equal(statistics.covariance.numpy(), covariance)
        assert statistics.count == 50_000
    for name in ("colours", "inception"):  # clean-fid's resize is another extractor
        with pytest.raises(UserError, match=f"and fd_dinov2, and no statistics of {name}"):
            reference.statistics(replace(COLOURS, name=name))
    np.testing.assert_array_equal(Stored.open(file).statistics(None).mean.numpy(), m)


def test_torch_fidelitys_statistics(tmp_path: Path) -> None:
    """What its own cache writes for a folder, read by its own code's layout."""
    from torch_fidelity.metric_fid import fid_features_to_statistics
    from torch_fidelity.utils import torch_atomic_save

    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    theirs = fid_features_to_statistics(rows)
    torch_atomic_save(theirs, str(tmp_path / "stat.pt"))
    statistics = load_reference(tmp_path / "stat.pt").statistics(COLOURS)
    np.testing.assert_array_equal(statistics.mean.numpy(), theirs["mu"])
    np.testing.assert_array_equal(statistics.covariance.numpy(), theirs["sigma"])


class Runs:
    """What a pickle from a stranger may do."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_a_pickle_runs_nothing(tmp_path: Path, suffix: str) -> None:
    """Whatever it calls, from numpy too: refused with a way out, and not called."""
    mark = tmp_path / "ran"
    for call in (Runs(os.mkdir, str(mark)), Runs(np.save, str(mark), 0), Runs(eval, "1")):
        file = tmp_path / f"stranger{suffix}"
        write_one = torch.save if suffix == ".pt" else lambda held, path: pickled(path, held)
        write_one({"fid": {"mu": call, "sigma": 0}}, file)
        with pytest.raises(UserError, match=r"asks for .* may hold arrays alone; save them as"):
            load_reference(file)
        assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_damaged_pickles(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, empty, text, or of other things: a sentence."""
    mean, covariance = gaussian(6)
    whole = tmp_path / f"whole{suffix}"
    save = torch.save if suffix == ".pt" else lambda held, path: pickled(path, held)
    save({"mu": mean, "sigma": covariance}, whole)
    content = whole.read_bytes()
    file = tmp_path / f"bad{suffix}"
    for bad in (b"", b"text", content[: len(content) // 2], content[:40], content[5:]):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="holds no statistics, or is damaged"):
            load_reference(file)
    for held in ({"other": mean}, [mean], 3, {"mu": "word", "sigma": None}):
        save(held, file)
        with pytest.raises(UserError, match="holds no statistics, or is damaged"):
            load_reference(file)


def test_nan_and_misshapen_references(tmp_path: Path) -> None:
    """In any part of any format."""
    mean, covariance = gaussian(6)
    good = {"mu": mean, "sigma": covariance}
    pickled(tmp_path / "nan.pkl", {"fid": good, "fd_dinov2": {**good, "mu": mean * np.nan}})
    pickled(tmp_path / "shape.pkl", {"mu": mean, "sigma": covariance[:3]})
    statistics = Statistics(torch.from_numpy(mean), torch.from_numpy(covariance) * np.inf, 9)
    statistics.save(tmp_path / "inf.safetensors")
    for name, said in (
        ("nan.pkl", "holds NaN"),
        ("shape.pkl", r"\(6,\) and \(3, 6\)"),
        ("inf.safetensors", "holds NaN or Inf"),
    ):
        with pytest.raises(UserError, match=said):
            load_reference(tmp_path / name)


def test_adms_reference_batches(tmp_path: Path) -> None:
    """Statistics and images in one file: the stored Gaussian, and features of the images."""
    mean, covariance = gaussian(6)
    own = {"mu": mean, "sigma": covariance, "mu_s": mean[:2], "sigma_s": covariance[:2, :2]}
    np.savez(tmp_path / "adm.npz", arr_0=noise(30), **own)
    reference = load_reference(tmp_path / "adm.npz")
    assert isinstance(reference, OfBoth)
    adms = replace(COLOURS, name="inception-tf")
    np.testing.assert_array_equal(reference.statistics(adms).mean.numpy(), mean)
    images = colours(write(tmp_path / "folder", noise(30)))
    assert torch.equal(reference.features(adms), images.features)
    plain, kept = reference.measure([Want(adms), Want(adms, True)])
    assert plain.features is None
    assert torch.equal(kept.features, images.features)
    np.testing.assert_array_equal(kept.statistics.mean.numpy(), mean)
    [other] = reference.measure([Want(COLOURS)])  # another extractor: of the images
    assert torch.equal(other.statistics.mean, images.statistics.mean)
    assert torch.equal(reference.statistics(COLOURS).mean, images.statistics.mean)
    assert reference.record()["num_samples"] == 30


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_images_as_a_reference(folder: Path, tmp_path: Path, form: str) -> None:
    """Measured as a side of a comparison is, once for each extractor, and nothing is left in
    files beside them."""
    np.savez(tmp_path / "images.npz", noise(30))
    zipped(folder, tmp_path / "images.zip")
    path = {"folder": folder, "zip": tmp_path / "images.zip", "npz": tmp_path / "images.npz"}[form]
    before = sorted(tmp_path.rglob("*"))
    reference = load_reference(path)
    assert isinstance(reference, OfImages)
    expected = colours(path)
    assert torch.equal(reference.features(COLOURS), expected.features)
    assert torch.equal(reference.statistics(COLOURS).covariance, expected.statistics.covariance)
    assert reference.statistics(COLOURS) is reference.statistics(COLOURS)
    assert sorted(tmp_path.rglob("*")) == before
    record = reference.record()
    assert record["num_samples"] == 30
    assert len(record["sha256"]) == 64


def test_no_reference(tmp_path: Path) -> None:
    """Nothing there, or something else."""
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name, said in (
        ("absent.npz", r"no reference at .*absent\.npz: give a folder, \.zip"),
        ("text.txt", r"no reference at .*text\.txt"),
        ("empty", "empty holds no images"),
        ("empty.zip", r"empty\.zip holds no images"),
    ):
        with pytest.raises(UserError, match=said):
            load_reference(tmp_path / name)


def test_few_samples_are_noted(tmp_path: Path) -> None:
    """Fewer images than features, of a file that says so and of a folder."""
    measured = colours(write(tmp_path / "few", noise(5)))
    assert any("5 samples of 6 features" in note for note in measured.notes)
    save_reference(tmp_path / "few.safetensors", measured, COLOURS, {})
    noted = Stored.open(tmp_path / "few.safetensors").measure([Want(COLOURS)])[0].notes
    assert any("few.safetensors: 5 samples of 6 features" in note for note in noted)


def test_what_says_nothing_of_its_extractor_stands_for_one(tmp_path: Path) -> None:
    """A mean and a covariance of another program, for two views of as many features, and for
    patches: refused. A file of ours says which, and EDM2's has a name for each."""
    mean, covariance = gaussian(6)
    np.savez(tmp_path / "theirs.npz", mu=mean, sigma=covariance)
    theirs = load_reference(tmp_path / "theirs.npz")
    tones = replace(COLOURS, name="tones")
    found = theirs.measure([Want(COLOURS), Want(tones)])
    check_one_each({"colours": found[0]})
    with pytest.raises(UserError, match=r"theirs\.npz .* cannot stand for both colours and tones"):
        check_one_each(dict(zip(("colours", "tones"), found, strict=True)))
    with pytest.raises(UserError, match=r"theirs\.npz does not say .* and a patch"):
        theirs.measure([Want(replace(COLOURS, of_patches=True))])
    pickled(tmp_path / "edm2.pkl", {"fid": {"mu": mean, "sigma": covariance}})
    edm2 = load_reference(tmp_path / "edm2.pkl")
    both = edm2.measure([Want(replace(COLOURS, name="inception-tf"))] * 2)
    check_one_each(dict(zip("ab", both, strict=True)))


def test_a_remembered_reference_is_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    """By a hash of each tensor: a bit that turned in a work folder is not measured with."""
    want = Want(COLOURS, True)
    (work := tmp_path / "work").mkdir()
    [first] = load_reference(folder, folder=work).measure([want])
    [file] = work.iterdir()
    [again] = load_reference(folder, folder=work).measure([want])
    assert torch.equal(again.statistics.covariance, first.statistics.covariance)
    assert torch.equal(again.features, first.features)
    assert (again.record, again.notes) == (first.record, first.notes)
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"reference-.* is damaged: remove it and give the same"
        ):
            load_reference(folder, folder=work).measure([want])


def test_links_to_nothing_and_folders_among_images(folder: Path, tmp_path: Path) -> None:
    """A folder named like an image is none; a link to nothing is an image that cannot be read, left
    out where that is asked for, and hashed as one."""
    place = tmp_path / "images"
    shutil.copytree(folder, place)
    plain = load_reference(place).measure([Want(COLOURS)])[0]
    (place / "x.png").mkdir()
    assert load_reference(place).measure([Want(COLOURS)])[0].record == plain.record
    (place / "y.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"y\.png .*skip_corrupt"):
        load_reference(place).measure([Want(COLOURS)])
    [found] = load_reference(place, Reading(skip_corrupt=True)).measure([Want(COLOURS)])
    assert torch.equal(found.statistics.mean, plain.statistics.mean)
    assert found.record["skipped"] == 1
    assert found.record["sha256"] != plain.record["sha256"]
