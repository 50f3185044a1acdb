"""``stepdistill fid A B``: folders, models, references, and what a mistake is answered with."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from tiny import tiny_teacher
from torch import Tensor, nn

from evals.fid import main
from stepdistill.cli import guarded
from stepdistill.data.digits import digits, digits_sha256
from stepdistill.errors import NonFiniteError, UserError
from stepdistill.evaluation.reading.archives import content_sha256, in_folder
from stepdistill.evaluation.reading.images import decode
from stepdistill.evaluation.reading.measuring import Reading, Want, measure_images
from stepdistill.metrics.extractors import extractor, inception
from stepdistill.metrics.extractors.digits import digit_features
from stepdistill.metrics.extractors.inception import inception_features
from stepdistill.metrics.features import Features, digest, eight_bit, quantised
from stepdistill.metrics.frechet import Statistics, frechet_distance
from stepdistill.metrics.quality import digits_reference, floor, measure
from stepdistill.plans import StepPlan
from stepdistill.sampling import NoiseStreams, sample_student, sample_teacher
from stepdistill.students import Student, load_student
from stepdistill.teachers import CARD, Teacher

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


def of_files(features: Features, files: Sequence[Path]) -> Tensor:
    """Features of image files, one by one."""
    return features.of_pixels(decode(file, features.mode) for file in files)


def statistics(folder: Path, features: Features, batch_size: int | None = None) -> Statistics:
    """Of all images in a folder."""
    pictures = in_folder(folder)
    how = Reading(batch_size)
    return measure_images(pictures, range(len(pictures)), [Want(features)], how)[0].statistics


def write_images(folder: Path, x0: Tensor) -> Path:
    """Image files, one each, named in order."""
    folder.mkdir()
    for i, pixels in enumerate(eight_bit(x0)):
        Image.fromarray(pixels.squeeze()).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first 90 digits, and the next 70, as PNG files."""
    place, x0 = tmp_path_factory.mktemp("digits"), digits()[0]
    return write_images(place / "a", x0[:90]), write_images(place / "b", x0[90:160])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A tiny random one, of 10 classes and the null class."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def student(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-step student of it, as ``export`` writes it."""
    return write_student(teacher, tmp_path_factory.mktemp("student") / "student")


def write_student(teacher: Teacher, folder: Path) -> Path:
    plan = StepPlan.uniform(2)
    teacher.save_student(teacher.student(), plan, folder)
    card = {"plan": plan.to_dict(), "num_classes": teacher.num_classes}
    (folder / CARD).write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random TorchScript network with the interface of the real file: ``layers`` gives (B, 2048)
    of (B, 3, 299, 299), and ``output`` is of 1,008 classes. Under clean-fid's name beside it too.
    """

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pool = nn.AdaptiveAvgPool2d(6)
            self.layers = nn.Sequential(pool, nn.Flatten(), nn.Linear(108, 2048), nn.Tanh())
            self.output = nn.Linear(2048, 1008)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.layers(x))

    torch.manual_seed(0)
    place, network = tmp_path_factory.mktemp("weights"), torch.jit.script(Tiny())
    for name in (inception.FILE, "random.pt"):
        network.save(str(place / name))
    return place / "random.pt"


@pytest.fixture
def fid(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the command and read the record it wrote."""

    def run(*arguments: object) -> dict[str, Any]:
        output = tmp_path / "out" / "fid.jsonl"
        main([*map(str, arguments), "--output", str(output)])
        record: dict[str, Any] = json.loads(output.read_text().splitlines()[-1])
        return record

    return run


def direct(features: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """By numpy alone, from features."""
    (m, s), (n, r) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (features, other))
    root = np.sqrt(np.linalg.eigvals(s @ r).astype(complex)).real.sum()
    return float(((m - n) ** 2).sum() + np.trace(s) + np.trace(r) - 2 * root)


def test_two_folders(
    folders: tuple[Path, Path], fid: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The value is the direct computation on the classifier's features of the same digits, whatever
    the batch size; each run adds one line of JSON that says what was measured."""
    a, b = folders
    classifier = digits_reference()[0]
    x0 = quantised(digits()[0])
    expected = direct(*(classifier.features(x).double().numpy() for x in (x0[:90], x0[90:160])))
    for batch_size in (1, 32, 1000):
        record = fid(a, b, "--features", "digits", "--batch-size", batch_size)
        assert record["fid"] == pytest.approx(expected, rel=1e-5)
    own = {"kind": "images", "path": str(a), "num_samples": 90, "seed": None, "skipped": 0}
    shas = [content_sha256(in_folder(folder)) for folder in folders]
    assert record["a"] == {**own, "sha256": shas[0]}
    assert record["b"] == {**own, "path": str(b), "num_samples": 70, "sha256": shas[1]}
    assert (record["metric"], record["features"]) == ("fid", "digits")
    assert record["features_sha256"] == digit_features().sha256
    assert record["versions"]["torch"] == version("torch")
    assert "fid_floor" not in record
    assert len((tmp_path / "out" / "fid.jsonl").read_text().splitlines()) == 3


def test_a_folder_and_itself(
    folders: tuple[Path, Path], fid: Callable[..., dict[str, Any]], capsys: Any
) -> None:
    """Nothing lies between a folder and itself, and that is what is printed."""
    record = fid(folders[0], folders[0], "--features", "digits")
    assert record["fid"] == pytest.approx(0, abs=1e-5)
    printed = capsys.readouterr().out
    assert printed.startswith("fid ")
    assert f"a: {folders[0]} (images, 90 images)" in printed


def test_files_have_the_features_of_their_tensors(folders: tuple[Path, Path]) -> None:
    """8-bit grey files give, bit for bit, the features of the tensors they were saved from, and of
    what ``quality.measure`` makes of them; so do samples between the 256 values and outside."""
    features, x0 = digit_features(), digits()[0][:90]
    files = sorted(folders[0].iterdir())
    assert torch.equal(of_files(features, files), features(x0))
    assert torch.equal(features(x0), digits_reference()[0].features(quantised(x0)))
    rough = x0 + 0.3 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features(rough), digits_reference()[0].features(quantised(rough)))


def test_part_of_a_folder(folders: tuple[Path, Path], fid: Callable[..., dict[str, Any]]) -> None:
    """``num`` images of A are drawn by the seed, over the whole folder; B is used whole."""
    a, b = folders
    records = [fid(a, b, "--features", "digits", "--num", 50, "--seed", seed) for seed in (3, 3, 4)]
    assert (records[0]["a"]["num_samples"], records[0]["b"]["num_samples"]) == (50, 70)
    assert records[0]["a"]["seed"] == 3
    assert records[0]["fid"] == records[1]["fid"] != records[2]["fid"]
    classes = write_images(b.parent / "c", digits()[0][:90].sort(0).values)  # not the first 50
    assert fid(classes, b, "--features", "digits", "--num", 50)["fid"] != pytest.approx(
        fid(classes, b, "--features", "digits")["fid"]
    )


def broken(folder: Path, x0: Tensor) -> Path:
    """40 images, of which three in the middle are cut, empty, or text."""
    write_images(folder, x0)
    whole = (folder / "0020.png").read_bytes()
    (folder / "0020.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0021.png").write_bytes(b"")
    (folder / "0022.png").write_text("not an image")
    return folder


@pytest.mark.parametrize("batch_size", [2, 64])
def test_corrupt_images(
    tmp_path: Path,
    folders: tuple[Path, Path],
    fid: Callable[..., dict[str, Any]],
    batch_size: int,
) -> None:
    """The first unreadable file is named. Only when asked are they left out: then they are counted,
    and the value is that of the folder without them (a whole batch may be lost too)."""
    x0 = digits()[0][:40]
    bad = broken(tmp_path / "bad", x0)
    given = [bad, folders[1], "--features", "digits", "--batch_size", batch_size]
    with pytest.raises(UserError, match=r"bad/0020\.png is not a readable image.*--skip_corrupt"):
        fid(*given)
    record = fid(*given, "--skip_corrupt")
    assert (record["a"]["num_samples"], record["a"]["skipped"]) == (37, 3)
    kept = write_images(tmp_path / "kept", torch.cat([x0[:20], x0[23:]]))
    assert record["fid"] == pytest.approx(fid(kept, *given[1:])["fid"], rel=1e-6)
    for file in sorted(bad.iterdir())[:20] + sorted(bad.iterdir())[23:]:
        file.unlink()
    with pytest.raises(UserError, match=r"no image in .*bad is readable"):
        fid(*given, "--skip_corrupt")


def test_a_corrupt_image_is_found_before_a_model_is_sampled(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even as B: the images of a folder are read before the long work of sampling A."""
    bad = broken(tmp_path / "bad", digits()[0][:40])
    monkeypatch.setattr(Student, "sample", lambda *_: pytest.fail("sampled first"))
    with pytest.raises(UserError, match=r"0020\.png"):
        main([str(student), str(bad)])


def test_images_of_another_size(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Nothing is resized to the digit classifier's 8x8 unasked: the file and its size are named,
    and ``skip_corrupt`` does not hide it."""
    large = write_images(tmp_path / "large", torch.zeros(3, 3, 9, 10))
    with pytest.raises(UserError, match=r"large/0000\.png.*8x8 grey images, not 10x9"):
        main([str(large), str(folders[0]), "--features", "digits", "--skip_corrupt"])


def test_images_of_16_bits(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Their conversion to 8 bits would turn nearly all to white: refused, and the file named."""
    deep = write_images(tmp_path / "deep", digits()[0][:5])
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(deep / "0003.png")
    with pytest.raises(UserError, match=r"deep/0003\.png has more than 8 bits"):
        main([str(deep), str(folders[0]), "--features", "digits", "--skip_corrupt"])


def test_model_against_digits(
    student: Path, teacher: Teacher, fid: Callable[..., dict[str, Any]]
) -> None:
    """A student folder through the stock pipeline has the distance that ``quality.measure`` gives
    the same pipeline, and the trainer's own network (but for pixels on the edge between two of the
    256 values), for each number of steps; batches of 50 and 100 agree."""
    denoiser = teacher.student()

    def own(steps: int) -> float:
        plan = StepPlan.uniform(2).subset(steps)

        def sampler(labels: Tensor, seeds: range) -> Tensor:
            cond = teacher.encode(labels.tolist())
            streams = NoiseStreams(seeds)
            return sample_student(denoiser, plan, cond, teacher.sample_shape, streams)

        return measure(sampler, 200, seed=7).fid

    given = [student, "digits", "--num", 200, "--seed", 7]
    records = [fid(*given, "--batch_size", size) for size in (50, 100)]
    for record in records:
        assert record["fid"] == pytest.approx(own(2), rel=1e-4)
    stock = load_student(student)
    exact = measure(lambda labels, seeds: stock.sample(labels.tolist(), seeds, 2, 500), 200, 7).fid
    assert fid(*given)["fid"] == pytest.approx(exact, rel=1e-9)
    assert fid(*given, "--steps", 1)["fid"] == pytest.approx(own(1), rel=1e-4)
    assert own(1) != pytest.approx(own(2), rel=1e-2)
    weights, scheduler = "unet/diffusion_pytorch_model", "scheduler/scheduler_config.json"
    own = records[0]["a"]
    assert own.pop("config_sha256")[scheduler] == digest(student / scheduler)
    assert own == {
        "kind": "model",
        "path": str(student),
        "name": "student",
        "pipeline": "ConsistencyModelPipeline",
        "role": "student",
        "call": {},
        "num_samples": 200,
        "seed": 7,
        "steps": 2,
        "guidance_scale": None,
        "dtype": "float32",
        "batch_size": 50,
        "labels": "stratified",
        "sha256": {f"{weights}.safetensors": digest(student / f"{weights}.safetensors")},
    }
    real = {"kind": "digits", "path": "digits", "num_samples": 1797, "sha256": digits_sha256()}
    assert records[0]["b"] == real
    assert records[0]["features"] == "digits"
    assert records[0]["fid_floor"] == floor(200, 7)


def test_a_pixel_teacher_is_measured_by_heuns_method(
    teacher: Teacher, fid: Callable[..., dict[str, Any]]
) -> None:
    """Its folder is measured on the samples of ``sample_teacher``, by default in 18 steps."""

    def own(steps: int) -> float:
        def sampler(labels: Tensor, seeds: range) -> Tensor:
            z = NoiseStreams(seeds).normal(teacher.sample_shape)
            return sample_teacher(teacher, teacher.encode(labels.tolist()), z, steps)

        return measure(sampler, 100, seed=7).fid

    given = [teacher.source, "digits", "--num", 100, "--seed", 7]
    record = fid(*given, "--steps", 3)
    assert (record["a"]["steps"], record["fid"]) == (3, pytest.approx(own(3), rel=1e-4))
    record = fid(*given)
    assert (record["a"]["steps"], record["fid"]) == (18, pytest.approx(own(18), rel=1e-4))


def test_two_models_draw_apart(student: Path, fid: Callable[..., dict[str, Any]]) -> None:
    """A model against itself does not score zero, which no finite sample does: B's seeds follow."""
    record = fid(student, student, "--num", 60)
    assert (record["a"]["seed"], record["b"]["seed"]) == (0, 60)
    assert record["fid"] > 1e-3


def test_a_model_that_gives_nan(teacher: Teacher, tmp_path: Path) -> None:
    """NaN pixels would become black in 8 bits: the folder and the seeds are named instead."""
    weight = teacher.denoiser.backbone.network.conv_out.bias
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    folder = write_student(teacher, tmp_path / "nan")
    weight.data.copy_(kept)
    with pytest.raises(NonFiniteError, match="nan, seeds 0 to 99: NaN or Inf in image 0"):
        main([str(folder), "digits", "--num", "100"])


def test_statistics_instead_of_images(
    folders: tuple[Path, Path], fid: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Stored statistics, ours or an .npz, stand for the folder they were made of; two of them are
    compared with no extractor at all, and those of other features are refused."""
    a, b = folders
    whole = fid(a, b, "--features", "digits")["fid"]
    own = statistics(b, digit_features())
    own.save(tmp_path / "b.safetensors")
    np.savez(tmp_path / "b.npz", mu=own.mean, sigma=own.covariance)
    for name, count in (("b.safetensors", 70), ("b.npz", None)):
        record = fid(a, tmp_path / name)
        assert record["fid"] == pytest.approx(whole, rel=1e-9)
        assert record["features"] == "digits"  # by their size
        assert record["b"]["num_samples"] == count
        assert record["b"]["sha256"] == digest(tmp_path / name)
    record = fid(tmp_path / "b.npz", tmp_path / "b.safetensors")
    assert record["fid"] == pytest.approx(0, abs=1e-5)
    assert record["features"] is None
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match=r"other\.npz holds statistics of 5 features"):
        fid(a, tmp_path / "other.npz", "--features", "digits")


@pytest.fixture
def sizes(tmp_path: Path) -> tuple[Path, Path]:
    """Colour images larger and smaller than what Inception sees, a JPEG; and grey ones, 8x8."""
    x0 = digits()[0]
    colour = torch.stack([x0[:24], x0[24:48], x0[48:72]], dim=1)[:, :, 0].repeat(1, 1, 5, 4)
    a = write_images(tmp_path / "a", colour)  # 40x32
    Image.fromarray(eight_bit(colour)[0]).resize((500, 400)).save(a / "photo.jpg", quality=90)
    return a, write_images(tmp_path / "b", x0[100:130])


@pytest.mark.filterwarnings("ignore")
def test_inception_equals_clean_fid(weights: Path, sizes: tuple[Path, Path]) -> None:
    """Our Inception path is clean-fid's: with the same (tiny, random) weights file its own network
    and folder reader give bit for bit our features."""
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    theirs = InceptionV3W(str(weights.parent), download=False)
    features = inception_features(weights)
    for folder in sizes:
        whole = get_folder_features(
            str(folder), theirs, num_workers=0, device=torch.device("cpu"), verbose=False
        )
        assert whole.shape[1] == 2048
        np.testing.assert_array_equal(of_files(features, sorted(folder.iterdir())).numpy(), whole)
    assert torch.equal(
        features(digits()[0][100:130]), of_files(features, sorted(sizes[1].iterdir()))
    )


@pytest.mark.skipif(
    "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters,
    reason="clean-fid calls scipy's sqrtm with disp, which scipy 1.18 took away",
)
@pytest.mark.filterwarnings("ignore")
def test_the_distance_equals_clean_fid(weights: Path, sizes: tuple[Path, Path]) -> None:
    """``compute_fid`` gives our distance."""
    from cleanfid.fid import compute_fid
    from cleanfid.inception_torchscript import InceptionV3W

    theirs = InceptionV3W(str(weights.parent), download=False)
    features = inception_features(weights)
    # their matrix root takes minutes on 2,048 features: the first 48
    expected = compute_fid(
        *map(str, sizes),
        custom_feat_extractor=lambda x: theirs(x)[:, :48],
        device=torch.device("cpu"),
        num_workers=0,
        verbose=False,
    )
    few = replace(features, network=lambda x: features.network(x)[:, :48])
    own = frechet_distance(*(statistics(folder, few, batch_size=7) for folder in sizes))
    assert own == pytest.approx(expected, rel=1e-4)


def test_every_extractor_can_be_sent_to_a_worker(weights: Path) -> None:
    """What it does to an image, which a spawned process is given, comes out the same there."""
    for name in ("digits", "scenes", "inception", "inception-tf"):
        given = weights if name.startswith("inception") else None
        features = extractor(name, given)
        side = {"digits": 8, "scenes": 32}.get(name, 40)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 1), np.uint8)
        sent = pickle.loads(pickle.dumps(features.prepare))
        assert torch.equal(sent(pixels), features.prepare(pixels))


@pytest.mark.parametrize("how", ["option", "environment", "clean-fid"])
def test_the_three_places_of_the_weights(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The option, the environment variable and clean-fid's copy are each found, in this order."""
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setattr(inception, "CLEAN_FID", tmp_path)
    (tmp_path / inception.FILE).touch()
    assert inception.find_weights() == tmp_path / inception.FILE
    if how == "environment":
        monkeypatch.setenv(inception.VARIABLE, str(weights))
        assert inception.find_weights() == weights
    if how == "option":
        monkeypatch.setenv(inception.VARIABLE, "elsewhere")
        assert inception.find_weights(weights) == weights


def test_inception_from_the_command_line(
    weights: Path,
    folders: tuple[Path, Path],
    fid: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two folders are measured on Inception unless told otherwise, the digits too when asked; the
    record holds the hash of its weights."""

    def small(pixels: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.repeat(pixels[:, :, :1], 3, 2).astype(np.float32))

    # the resize to 299 pixels of 1,797 images takes too long for a test
    shortened = replace(
        inception_features(weights), size=24, prepare=small, network=lambda x: x.mean(1).flatten(1)
    )
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "stepdistill.evaluation.measures.views.extractor",
        lambda *g: asked.append(g) or shortened,
    )
    record = fid(*folders, "--weights", weights)
    assert asked == [("inception", str(weights), "cuda" if torch.cuda.is_available() else "cpu")]
    assert (record["features"], record["features_sha256"]) == ("inception", digest(weights))
    record = fid(folders[0], "digits", "--features", "inception")
    assert record["b"]["num_samples"] == 1797
    assert "fid_floor" not in record


def test_missing_inception_weights(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is fetched: one sentence names the file, where it is had and the three places; a file
    that was named and is not there is said, and not replaced by another. The exit code is 2."""
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setattr(inception, "CLEAN_FID", tmp_path / "temp")
    monkeypatch.setattr("cleanfid.inception_torchscript.check_download_inception", pytest.fail)
    given = [str(folder) for folder in folders]
    with pytest.raises(SystemExit) as left:
        guarded(lambda: main(given))
    assert left.value.code == 2
    said = capsys.readouterr().err
    for part in (inception.FILE, "https://", "--weights", inception.VARIABLE):
        assert part in said
    assert str(tmp_path / "temp" / inception.FILE) in said
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp" / inception.FILE).touch()
    with pytest.raises(UserError, match="there is no file absent"):
        main([*given, "--weights", "absent.pt"])
    monkeypatch.setenv(inception.VARIABLE, "not-here.pt")
    with pytest.raises(UserError, match="there is no file not-here"):
        main(given)


def test_damaged_inception_weights(
    weights: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """An interrupted download, an empty file and another network are told from the real file."""
    given = [str(folder) for folder in folders]
    whole = weights.read_bytes()
    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "other.pt"))
    contents = {"cut.pt": whole[: len(whole) // 2], "empty.pt": b"", "text.pt": b"<html>404</html>"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "other.pt"):
        with pytest.raises(UserError, match=f"{name} is truncated, or not {inception.FILE}"):
            main([*given, "--weights", str(tmp_path / name)])


def test_mistakes(
    folders: tuple[Path, Path],
    student: Path,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is answered with a sentence that names the thing and the mend, before any work."""
    monkeypatch.setattr(
        "stepdistill.evaluation.pairs.comparison.compare_images",
        lambda *_: pytest.fail("measured first"),
    )
    a, b = map(str, folders)
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    student_of_run = tmp_path / "run" / "student"
    student_of_run.symlink_to(student)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    digits_features = ("--features", "digits")
    for arguments, said in [
        ((str(tmp_path / "empty"), a), "empty holds no images"),
        (("absent/", a), "absent/ is no image folder"),
        (("digit", a), "Did you mean digits"),
        ((str(tmp_path / "run"), "digits"), f"is a run folder: name its student, {student_of_run}"),
        ((str(tmp_path / "damaged"), a), "damaged could not be loaded"),
        ((a,), " b"),
        ((a, b, "--batch_sise", "4"), "batch_size"),
        ((a, b, "--features", "clip"), "inception"),
        ((a, b, "--num", "1"), "num must be at least 2, got 1"),
        ((a, b, "--seed", "99999999999999999999"), "seed must lie in 0 to"),
        ((a, b, "--num", "91", *digits_features), "a holds 90 images, fewer than num 91"),
        ((a, b, "--batch_size", "0"), "batch_size must be at least 1, got 0"),
        ((a, b, "--steps", "2", *digits_features), "steps are a model's"),
        (("digits", a, "--num", "9"), "num counts a model's samples"),
        ((str(student), "digits", "--steps", "3"), "2 trained steps: use one of"),
        ((a, "digits", "--weights", str(weights)), "the digits features are bundled"),
        ((a, "digits", "--device", "cuda:77"), "there is no device cuda:77"),
        ((a, "digits", "--output", str(tmp_path)), "cannot write to"),
        ((a, "digits", "--output", str(weights / "fid.json")), "cannot write to"),
    ]:
        with pytest.raises(UserError) as error:
            main(list(arguments))
        assert said in str(error.value), (arguments, str(error.value))
