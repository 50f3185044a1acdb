"""``stepdistill eval images`` and ``stepdistill eval reference``, by their programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_eval_images import COLOURS, mean_and_row, noise, square, write, zipped
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.functional import center_crop

from evals.evaluate_images import main as evaluate
from evals.make_reference import main as make_reference
from stepdistill.data.digits import digits
from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.measures.image_metrics import METRICS
from stepdistill.evaluation.reading.archives import InFolder, content_sha256, open_pictures
from stepdistill.metrics.extractors import extractor
from stepdistill.metrics.features import Features, eight_bit
from stepdistill.metrics.kid import draw_subsets


def squares_of(x: Tensor) -> Tensor:
    """(B, 6) of squares, as unlike ``mean_and_row`` as a second network is."""
    return mean_and_row(x.flip(3)).sqrt()


CLASSES = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) / 50
SMALL = {
    "inception": replace(COLOURS, name="inception", logits=CLASSES),
    "inception-tf": replace(COLOURS, name="inception-tf", sha256="t"),
    "dinov2": replace(COLOURS, name="dinov2", network=squares_of, sha256="d"),
    "clip-336": replace(COLOURS, name="clip-336", network=squares_of, sha256="c"),
}


@pytest.fixture(autouse=True)
def small_extractors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """In place of those whose weights must be fetched; the bundled ones are themselves."""
    asked: list[tuple[Any, ...]] = []

    def small(name: str, weights: Any = None, device: Any = "cpu") -> Features:
        asked.append((name, weights))
        return SMALL[name] if name in SMALL else extractor(name, weights, device)

    monkeypatch.setattr("stepdistill.evaluation.measures.views.extractor", small)
    return asked


def sets(place: Path, first: int) -> tuple[Path, Path]:
    """So many images, and the rest of a hundred, somewhat alike."""
    images = noise(100, 20, 26)
    other = (images[first:].astype(float) * 0.75 + 30).clip(0, 255).astype(np.uint8)
    return write(place / "a", images[:first]), write(place / "b", other)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of forty images and of sixty."""
    return sets(tmp_path, 40)


def features_of(
    folder: Path,
    network: Callable[[Tensor], Tensor] = mean_and_row,
    before: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> Tensor:
    """By hand."""
    files = sorted(folder.iterdir())
    return network(torch.stack([square(np.array(before(Image.open(file)))) for file in files]))


def density_and_coverage(x: Tensor, y: Tensor, nearest: int = 5) -> tuple[float, float]:
    """As Naeem et al. 2020 write them, with all distances at once."""
    a, b = x.double().numpy(), y.double().numpy()
    radii = np.sort(np.linalg.norm(b[:, None] - b[None], axis=2), axis=1)[:, nearest]
    inside = np.linalg.norm(a[:, None] - b[None], axis=2) < radii
    return float(inside.sum() / (nearest * len(a))), float(inside.any(0).mean())


def gaussian_discrepancy(x: Tensor, y: Tensor) -> float:
    """CMMD with all pairs at once, of vectors of unit length (Jayasumana et al. 2024)."""
    a, b = (
        f.double().numpy() / np.linalg.norm(f.double().numpy(), axis=1)[:, None] for f in (x, y)
    )

    def mean(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.exp(-((u[:, None] - v[None]) ** 2).sum(2) / (2 * 10**2)).mean())

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def others(x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """The values of those metrics that torch-fidelity has; KID on the subsets that are drawn."""
    x, y, size = x.double(), y.double(), min(len(x), len(y))
    near = prc_features_to_metric(
        x, y, prc_neighborhood=3, prc_batch_size=7, save_cpu_ram=False, verbose=False
    )
    logits = x @ CLASSES.double().T
    drawn = draw_subsets(len(x), len(y), size, 100, seed)
    cubic = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    subsets = [kernel_mmd(x[i].numpy(), y[j].numpy(), **cubic) for i, j in drawn]
    return {
        "kid": float(np.mean(subsets)),
        "precision": near["precision"],
        "recall": near["recall"],
        "inception_score": isc_features_to_metric(logits, 10, True)["inception_score_mean"],
    }


def distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance by numpy alone."""
    rows = (features.double().numpy() for features in (x, y))
    (m, s), (n, r) = ((f.mean(0), np.cov(f, rowvar=False)) for f in rows)
    root = np.sqrt(np.linalg.eigvals(s @ r).astype(complex)).real.sum()
    return float(((m - n) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * root)


def run(*arguments: object, to: Path) -> dict[str, Any]:
    """The record that the command writes."""
    evaluate([*map(str, arguments), "--output", str(to)])
    record: dict[str, Any] = json.loads(to.read_text())
    return record


def test_every_metric(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once: each value is torch-fidelity's or numpy's of the features by hand, A first, and
    every image is decoded once."""
    opened: list[str] = []
    before = InFolder.open
    monkeypatch.setattr(
        InFolder, "open", lambda self, i: opened.append(self.name(i)) or before(self, i)
    )
    a, b = folders
    record = run(
        a, b, "--metrics", ",".join(METRICS), "--patch", 12, "--seed", 3, to=tmp_path / "all.json"
    )
    assert len(opened) == len(set(opened)) == 100
    x, y = (features_of(folder) for folder in folders)
    u, v = (features_of(folder, squares_of) for folder in folders)
    patches = [features_of(folder, before=lambda i: center_crop(i, 12)) for folder in folders]
    density, coverage = density_and_coverage(x, y)
    expected = {
        "fid": distance(x, y),
        **others(x, y, seed=3),
        "density": density,
        "coverage": coverage,
        "fd_dinov2": distance(u, v),
        "cmmd": gaussian_discrepancy(u, v),
        "patch_fid": distance(*patches),
    }
    close = {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert record["metrics"] == close
    parts = ("precision", "recall", "density", "coverage")
    assert len({expected[name] for name in parts}) == 4, "each is told from the others"
    assert record["details"]["kid"]["subset_size"] == 40
    keys = {"inception", "dinov2", "clip-336", "inception-crop12"}
    assert set(record["extractors"]) == keys
    assert "12" in record["extractors"]["inception-crop12"]["resize"]


def test_the_kernel_distance_of_all(tmp_path: Path) -> None:
    """With equal counts below 1,000 each subset is all of both: torch-fidelity's own KID of as many
    gives the value, whatever either draws."""
    a, b = sets(tmp_path, 50)
    record = run(a, b, "--metrics", "kid", "--seed", 8, to=tmp_path / "kid.json")
    x, y = (features_of(folder).double() for folder in (a, b))
    theirs = kid_features_to_metric(
        x, y, kid_subsets=3, kid_subset_size=50, rng_seed=1, verbose=False
    )
    expected = theirs["kernel_inception_distance_mean"]
    assert record["metrics"]["kid"] == pytest.approx(expected, rel=1e-6)
    assert record["details"]["kid"]["subset_size"] == 50
    assert record["details"]["kid"]["deviation"] < 1e-6 * expected


def hash_of(folder: Path) -> str:
    """As the records have it."""
    pictures = open_pictures(folder)
    assert pictures is not None
    return content_sha256(pictures)


def test_the_record(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """What was measured of what; a .json is written whole, other files get a line each."""
    a, b = folders
    record = run(a, b, "--num", 30, "--seed", 5, to=tmp_path / "one.json")
    assert (record["format"], record["protocol"], record["repeats"]) == (1, "images", 1)
    assert record["a"] == {
        "kind": "images",
        "path": str(a),
        "num_samples": 30,
        "skipped": 0,
        "sha256": hash_of(a),
        "seed": 5,
    }
    assert record["reference"] == {
        "kind": "images",
        "path": str(b),
        "num_samples": 60,
        "skipped": 0,
        "sha256": hash_of(b),
        "seed": None,
    }
    assert record["extractors"] == {"inception": {"sha256": "0", "resize": "none"}}
    assert record["sampling"] == {"num": 30, "seed": 5}
    assert any("weights of inception are not the published" in note for note in record["notes"])
    for _ in range(2):
        evaluate([str(a), str(b), "--output", str(tmp_path / "many.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["metrics"] == lines[1]["metrics"] != record["metrics"]


def test_a_size(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Both sides are cut and resized before the extractor, which the record says."""
    record = run(*folders, "--size", 9, to=tmp_path / "size.json")

    def small(image: Image.Image) -> Image.Image:
        return center_crop(image, min(image.size)).resize((9, 9), Image.Resampling.LANCZOS)

    x, y = (features_of(folder, before=small) for folder in folders)
    assert record["metrics"]["fid"] == pytest.approx(distance(x, y), rel=1e-6)
    assert "9" in record["extractors"]["inception-9px"]["resize"]


def test_digits_by_default(tmp_path: Path) -> None:
    """The built-in world is a side like any other, with its features."""
    folder = write(tmp_path / "a", eight_bit(digits()[0][:60]).squeeze(-1))
    given = [folder, "digits", "--metrics", "fid,precision_recall"]
    record = run(*given, to=tmp_path / "digits.json")
    assert set(record["extractors"]) == {"digits"}
    assert record["reference"]["num_samples"] == 1797
    assert record["metrics"]["precision"] == 1  # they are among them
    assert record["metrics"]["recall"] < 1


def test_two_files_of_statistics_need_no_extractor(
    folders: tuple[Path, Path], tmp_path: Path, small_extractors: list[tuple[Any, ...]]
) -> None:
    """Their distance is that of the images, and no weights are looked for."""
    plain = run(*folders, to=tmp_path / "plain.json")
    files = [tmp_path / f"{folder.name}.safetensors" for folder in folders]
    for folder, file in zip(folders, files, strict=True):
        make_reference(["--data", str(folder), "--output", str(file)])
    small_extractors.clear()
    record = run(*files, to=tmp_path / "files.json")
    assert not small_extractors
    assert record["metrics"]["fid"] == pytest.approx(plain["metrics"]["fid"], rel=1e-9)
    assert record["reference"]["kind"] == "statistics"
    assert record["extractors"] == record["measured_on"] == {}
    assert plain["measured_on"] == {"fid": "inception"}
    other = tmp_path / "other.safetensors"
    make_reference(["--data", str(folders[1]), "--output", str(other), "--size", "9"])
    with pytest.raises(UserError, match=r"a\.safetensors and .*other\.safetensors were not made"):
        run(files[0], other, to=tmp_path / "mixed.json")


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_a_reference_stands_for_its_images(
    folders: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    """Made by the command: the same values to rounding, of all metrics where its features are
    kept."""
    a, b = folders
    np.savez(tmp_path / "b.npz", np.stack([np.array(Image.open(f)) for f in sorted(b.iterdir())]))
    data = {"folder": b, "zip": zipped(b, tmp_path / "b.zip"), "npz": tmp_path / "b.npz"}[form]
    file = tmp_path / "new" / "reference.safetensors"
    make_reference(["--data", str(data), "--output", str(file), "--keep_features"])
    asked = ["--metrics", "fid,kid,precision_recall,density_coverage"]
    direct = run(a, b, *asked, to=tmp_path / "direct.json")
    record = run(a, file, *asked, to=tmp_path / "stored.json")
    assert record["metrics"] == {
        name: pytest.approx(value, rel=1e-9) for name, value in direct["metrics"].items()
    }
    assert (record["reference"]["kind"], record["reference"]["num_samples"]) == ("statistics", 60)
    assert len(record["reference"]["sha256"]) == 64


def test_what_a_reference_is_refused_to(
    folders: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    """Another extractor, another preprocessing, and metrics of features that it did not keep."""
    a, b = folders
    file = tmp_path / "reference.safetensors"
    make_reference(["--data", str(b), "--output", str(file), "--size", "9"])
    assert "60 images on inception-9px" in capsys.readouterr().out
    for asked, said in (
        ([], r"another extractor \(inception-9px, and this is inception\)"),
        (["--size", "10"], "another extractor"),
        (["--size", "9", "--features", "inception-tf"], "another extractor"),
        (["--size", "9", "--metrics", "kid,fid"], "mean and a covariance alone, and kid need"),
        (["--size", "9", "--patch", "12"], "another extractor"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate([str(a), str(file), *asked])
    evaluate([str(a), str(file), "--size", "9"])


def test_mistakes(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets a sentence before any image is read."""
    monkeypatch.setattr(InFolder, "open", lambda *_: pytest.fail("read first"))
    a, b = map(str, folders)
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ((a, b, "--metrics", "fid,kdi"), "there is no metric kdi. Did you mean kid?"),
        ((a, b, "--metrics", ""), "metrics is empty"),
        ((a, b, "--features", "incepton"), "did you mean inception"),
        ((a, b, "--features", "dinov2"), "fid is not of dinov2 features: take the metrics"),
        ((a, b, "--batch_size", "0"), "batch_size must be at least 1, got 0"),
        ((a, b, "--workers", "0"), "workers must be at least 1, got 0"),
        ((a, b, "--size", "0"), "size must be at least 1, got 0"),
        ((a, b, "--patch", "-3"), "patch must be at least 1, got -3"),
        ((a, b, "--num", "41"), "a holds 40 images, fewer than num 41"),
        ((a, b, "--output", str(tmp_path)), "cannot write to"),
        ((a, b, "--metric", "kid"), "Did you mean --metrics?"),
        ((a, str(tmp_path / "absent")), "absent is no image folder"),
        ((str(tmp_path / "empty"), b), "empty holds no images"),
        ((a,), " b"),
    ):
        with pytest.raises(UserError) as error:
            evaluate(list(arguments))
        assert said in str(error.value), (arguments, str(error.value))
    output = ("--output", str(tmp_path / "r.safetensors"))
    for arguments, said in (
        (("--data", a), "needs --output"),
        (("--data", a, "--output", str(tmp_path / "r.npz")), "must be a .safetensors file"),
        (("--data", str(tmp_path / "absent"), *output), "there are no images at"),
        (("--data", str(tmp_path / "empty"), *output), "empty holds no images"),
        (("--data", a, *output, "--size", "9", "--patch", "9"), "give size or patch, not both"),
        (("--data", a, *output, "--batch_size", "0"), "batch_size must be at least 1"),
        (("--data", a, *output, "--features", "dino"), "did you mean dinov2"),
    ):
        with pytest.raises(UserError) as error:
            make_reference(list(arguments))
        assert said in str(error.value), (arguments, str(error.value))


def test_no_room_for_features(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is said before the images are read."""
    monkeypatch.setattr(InFolder, "open", lambda *_: pytest.fail("read first"))
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("stepdistill.files.shutil.disk_usage", lambda _: usage)
    file = str(tmp_path / "r.safetensors")
    with pytest.raises(UserError, match=r"features take .* GB and .* GB left: name another"):
        make_reference(["--data", str(folders[0]), "--output", file, "--keep_features"])


def test_inception_score_needs_classes(folders: tuple[Path, Path]) -> None:
    """Those of an extractor that has some."""
    with pytest.raises(UserError, match="inception-tf features have no classes"):
        evaluate([*map(str, folders), "--features", "inception-tf", "--metrics", "inception_score"])


def test_a_record_that_cannot_be_written(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves the record that was there."""
    output = tmp_path / "record.json"
    run(*folders, to=output)
    before = output.read_text()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StepDistillError, match=r"could not write .*record\.json \(.*No space left"):
        evaluate([*map(str, folders), "--output", str(output)])
    monkeypatch.undo()
    assert output.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "record.json"]
