"""Students of any teacher, measured during training: the numbers, and what is done only once.

Real tiny runs on the digit classifier's features, compared with what is computed here by hand.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from commands import check_exports_here, draw_no_report, run
from PIL import Image
from run_tiny import digest, free_port, launch, stderr_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepdistill import checkpoint
from stepdistill.data.digits import digits
from stepdistill.distil import build_method, read_settings
from stepdistill.distil.baseline import FILE
from stepdistill.distil.measuring import Measuring
from stepdistill.distil.options import DistilOptions, EvalOptions
from stepdistill.distil.prepared import prepare_measuring
from stepdistill.distil.seeing import student_sampler, teacher_sampler
from stepdistill.distil.told import Order, Told, most_told
from stepdistill.errors import NonFiniteError, StepDistillError
from stepdistill.metrics.extractors.digits import digit_features
from stepdistill.metrics.frechet import Moments, Statistics
from stepdistill.metrics.kid import paired_squared_mmd, squared_mmd
from stepdistill.plans import StepPlan
from stepdistill.runs import RunFolder, read_metrics
from stepdistill.sampling import NoiseStreams, sample_student, sample_teacher
from stepdistill.teachers import load_teacher

NUM, BLOCK = 60, 30


pytestmark = pytest.mark.usefixtures("quick_runs")


def train(teacher: Path, output: Path, *more: object) -> int:
    """ECT on the digits, measured every second iteration."""
    given = ["--teacher", teacher, "--output", output, "--data=digits", "--batch_size=8"]
    own = ["--eval.features=digits", "--evaluate_every=2", f"--evaluate_samples={NUM}"]
    own += [f"--eval.batch_size={BLOCK}"]
    return run("train", "ect", *given, *own, "--max_steps=2", *more)


def measured(run: Path) -> list[dict[str, float]]:
    """The measurements, without how long they took."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "eval/diversity" in row]
    return [{k.removeprefix("eval/"): v for k, v in row.items() if "seconds" not in k}
            for row in rows]  # fmt: skip


# --- by hand -----------------------------------------------------------------------------------


def halves(num: int) -> list[tuple[list[int], range]]:
    """The classes, in turn, and the places of each block that the runs draw at a time."""
    blocks = [range(begin, min(begin + BLOCK, num)) for begin in range(0, num, BLOCK)]
    return [([i % 10 for i in block], block) for block in blocks]


def student_features(run: Path) -> Tensor:
    """Of the average in the checkpoint: the class and the seed of sample i are i mod 10 and i."""
    settings = read_settings("ect", ["--config", str(run / "config.yaml")])
    teacher = load_teacher(settings.get(DistilOptions).teacher)
    role = build_method("ect", settings, teacher).roles["generator"]
    checkpoint.load_average(run / "checkpoints" / "000002", role)
    features, found = digit_features(), []
    for classes, block in halves(NUM):
        noise, plan, cond = NoiseStreams(block), StepPlan.uniform(1), teacher.encode(classes)
        found.append(features(sample_student(role.frozen, plan, cond, (1, 8, 8), noise)))
    return torch.cat(found)


def teacher_features(folder: Path) -> Tensor:
    """Its own samples have the seeds behind the student's."""
    teacher, features, found = load_teacher(folder), digit_features(), []
    for classes, block in halves(NUM):
        z = NoiseStreams(NUM + i for i in block).normal((1, 8, 8))
        found.append(features(sample_teacher(teacher, teacher.encode(classes), z)))
    return torch.cat(found)


def distance(a: Tensor, b: Tensor) -> float:
    """Frechet, by numpy: the roots of the eigenvalues of the product of the covariances."""
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(s @ t).real.clip(0))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * roots.sum())


def kernel(a: Tensor, b: Tensor) -> float:
    """The squared MMD under (x . y / 32 + 1)^3, over all pairs of different places."""
    x, y = a.double().numpy(), b.double().numpy()
    xx, yy, xy = ((u @ v.T / 32 + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    return float((xx + yy - 2 * xy)[~np.eye(len(x), dtype=bool)].mean())


def spread(features: Tensor) -> float:
    """Mean distance of two samples of one class."""
    own = [features[k::10].double() for k in range(10)]
    apart = [(x[:, None] - x[None]).norm(dim=2).sum() / (len(x) * (len(x) - 1)) for x in own]
    return float(torch.stack(apart).mean())


@pytest.fixture(scope="module")
def trained(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, measured against its teacher after the last."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        draw_no_report(patch)
        assert train(teacher, folder) == 0
    return folder


def test_the_kernel_distance_of_samples_told_the_same_is_not_biased() -> None:
    """Two draws of one model of 4 far classes, told in turn: zero on average, where the distance
    of independent samples is far below; and of another model its true value, at any block."""
    torch.manual_seed(0)
    means = 3 * torch.randn(4, 8)[torch.arange(24) % 4]
    draws = [means + torch.randn(24, 8) for _ in range(600)]
    paired, plain = (
        torch.stack([distance(x, y) for x, y in zip(draws[::2], draws[1::2], strict=True)])
        for distance in (paired_squared_mmd, squared_mmd)
    )
    error = paired.std() / 300**0.5
    assert paired.mean().abs() < 4 * error
    assert plain.mean() < -20 * error
    x, y = torch.randn(7, 8), torch.randn(7, 8)
    (kxx, kyy, kxy) = (
        (u.double() @ v.double().T / 8 + 1) ** 3 for u, v in ((x, x), (y, y), (x, y))
    )
    places = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = sum(kxx[i, j] + kyy[i, j] - kxy[i, j] - kxy[j, i] for i, j in places) / 42
    assert float(paired_squared_mmd(x, y, block=3)) == pytest.approx(float(expected), rel=1e-12)


def test_the_distance_to_the_teacher_and_the_diversity(teacher: Path, trained: Path) -> None:
    """As computed from the averaged student and the teacher, by the seeds."""
    (found,) = measured(trained)
    student, own = student_features(trained), teacher_features(teacher)
    assert found["teacher_distance"] == pytest.approx(distance(student, own), rel=1e-6)
    assert found["teacher_kid"] == pytest.approx(kernel(student, own), rel=1e-6)
    assert found["diversity"] == pytest.approx(spread(student) / spread(own), rel=1e-6)
    assert found["num_samples"] == NUM


def pictures(folder: Path, x0: Tensor) -> Path:
    """8x8 grey PNG files."""
    folder.mkdir()
    for i, image in enumerate(((x0[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{i:04d}.png")
    return folder


@pytest.mark.slow
def test_the_distance_to_a_reference(teacher: Path, tmp_path: Path) -> None:
    """Of images, or the statistics of these: the same fid, that of the averaged student."""
    real = digits()[0][:100]
    folder = pictures(tmp_path / "real", real)
    moments = Moments()
    moments.add(digit_features()(real))
    Statistics.of(moments).save(tmp_path / "real.safetensors")
    found = []
    for name, reference in (("a", folder), ("b", tmp_path / "real.safetensors")):
        assert train(teacher, tmp_path / name, "--eval.reference", reference) == 0
        found += measured(tmp_path / name)
    assert found[0].pop("kid") > 0  # statistics alone hold no features
    assert found[0] == found[1]
    student = student_features(tmp_path / "a")
    assert found[0]["fid"] == pytest.approx(distance(student, digit_features()(real)), rel=1e-6)
    own = spread(teacher_features(teacher))
    assert found[0]["diversity"] == pytest.approx(spread(student) / own, rel=1e-6)


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_stops_where_the_straight_one_does(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is not sampled again; the metrics are the same to the last bit. The distance of
    these rises from the first on, whose student is the best, kept and exported."""
    more = ["--stop_after=2", "--export_best", "--keep=1", "--method.lr=3e-3"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert train(teacher, straight, *more, "--max_steps=20") == 0
    assert train(teacher, resumed, *more) == 0
    kept = (resumed / FILE).read_bytes()
    module = importlib.import_module("stepdistill.distil.seeing")
    monkeypatch.setattr(module, "sample_teacher", None)
    assert train(teacher, resumed, *more, "--max_steps=20") == 0
    assert (resumed / FILE).read_bytes() == kept == (straight / FILE).read_bytes()
    rows = measured(straight)
    assert rows == measured(resumed)
    distances = [row["teacher_distance"] for row in rows]
    best = distances.index(min(distances))
    assert len(rows) == best + 3 < 10
    last = rows[-1]["iteration"]
    for folder in (straight, resumed):
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == [f"{2 * best + 2:06d}", f"{last:06d}"]
        card = json.loads((folder / "student" / "stepdistill.json").read_text())
        assert card["iteration"] == rows[best]["iteration"]
        assert card["metrics"]["teacher_distance"] == distances[best]
    files = [digest(straight / part) for part in ("student", "checkpoints")]
    assert train(teacher, straight, *more, "--max_steps=20") == 0  # done: nothing is written
    assert [digest(straight / part) for part in ("student", "checkpoints")] == files
    assert measured(straight) == rows
    name = "student/unet/diffusion_pytorch_model.safetensors"
    a, b = load_file(straight / name), load_file(resumed / name)
    assert all(torch.equal(a[key], b[key]) for key in a)
    kept = load_file(straight / "checkpoints" / f"{2 * best + 2:06d}" / "state.safetensors")
    assert torch.equal(a["conv_in.weight"], kept["ema/backbone.network.conv_in.weight"])


def prepared(
    folder: Path, num: int = 400, block: int = 100, **own: Any
) -> tuple[Any, Measuring, Accelerator]:  # fmt: skip
    """(method, how it is measured, accelerator) for one-step students of the teacher in
    ``folder``."""
    given = ["--teacher", str(folder), "--output=none", "--data=digits"]
    settings = read_settings("ect", given)
    loaded, accelerator = load_teacher(folder), Accelerator(cpu=True)
    method = build_method("ect", settings, loaded)
    classes = Told("10 classes", 10, loaded.encode, loaded)
    options = EvalOptions(features="digits", **own)
    return method, prepare_measuring(options, classes, num, block, 1.0, accelerator), accelerator


@pytest.mark.slow
def test_the_alarm_is_for_generators_that_ignore_their_noise(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's own samples are as diverse as the teacher's. Of a student whose first layer
    does not see the noise the run says so, once."""
    _, measuring, accelerator = prepared(teacher)
    with RunFolder(tmp_path / "own") as folder:
        baseline = measuring.baseline(folder, accelerator)
    networks = measuring.wanted.open("cpu")
    teachers = teacher_sampler(measuring.seeing.told, 1.0)
    own = measuring.seeing.seen(teachers, range(5000, 5400), networks)
    assert baseline is not None
    found = measuring.compare(own, networks, baseline)
    assert found["diversity"] == pytest.approx(1, abs=0.05)

    assert train(teacher, tmp_path / "run", "--max_steps=2") == 0
    student, weights = tmp_path / "run" / "student", "unet/diffusion_pytorch_model.safetensors"
    blind = {k: v * (k != "conv_in.weight") for k, v in load_file(student / weights).items()}
    save_file(blind, student / weights)
    capsys.readouterr()
    more = ["--init", student, "--max_steps=6", "--method.lr=1e-9"]
    assert train(teacher, tmp_path / "blind", *more) == 0
    rows = measured(tmp_path / "blind")
    assert all(row["diversity"] < 0.2 for row in rows)
    assert ["diversity_alarm" in row for row in rows] == [True, False, False]
    said = capsys.readouterr().err
    assert said.count("below diversity_alarm=0.5") == 1
    assert said.count(f"evaluate_samples={NUM} give a trend") == 0  # of 32 features


def one_rank(folder: Path, teacher: Path, rank: int) -> None:
    """Measure a student, and the teacher first."""
    method, measuring, _ = prepared(teacher, NUM, 16)
    with RunFolder(folder) if rank == 0 else folder_of_another(folder) as run:
        found = measuring.evaluation(method, run, Accelerator(cpu=True))()
    (folder / f"rank{rank}").write_text(json.dumps(found))


def folder_of_another(folder: Path) -> Any:
    import contextlib

    return contextlib.nullcontext(RunFolder(folder))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(teacher: Path, tmp_path: Path) -> None:
    """The blocks are shared, and their features are those of one process to the last bit."""
    alone, folder, port = tmp_path / "alone", tmp_path / "run", free_port()
    one_rank(alone, teacher, 0)
    ranks = [launch(one_rank, (folder, teacher, r), folder, r, 2, port) for r in (0, 1)]
    for process in ranks:
        process.join(100)
    assert [p.exitcode for p in ranks] == [0, 0], stderr_of(folder) + stderr_of(folder, 1)
    assert (folder / "rank0").read_text() == (alone / "rank0").read_text()
    assert (folder / "rank1").read_text() == "{}"
    assert (folder / FILE).read_bytes() == (alone / FILE).read_bytes()


# --- what samples are told ---------------------------------------------------------------------


@pytest.mark.parametrize(("num", "count"), [(4, 1), (60, 10), (400, 10), (400, 1), (1000, 10**6),
                                            (300, 64), (300, 70), (7, 3), (256, 1000)])  # fmt: skip
def test_the_order_of_what_is_told(num: int, count: int) -> None:
    """Those of the diversity in equal groups of at least four, all the others in turn."""
    order = Order.of(num, min(count, most_told(num)))
    places = order.places
    assert len(places) == num
    assert int(places.max()) < min(count, most_told(num))
    near = places[: order.near].reshape(order.each, order.kinds)
    assert (near == torch.arange(order.kinds)).all()
    assert order.each >= 4
    assert order.near <= 256
    behind = places[order.near :]
    assert ((behind - behind.roll(1))[1:] % min(count, most_told(num)) == 1 % count).all()
    if count >= most_told(num):  # each conditioning is told
        assert len(places.unique()) == most_told(num)


# --- mistakes ----------------------------------------------------------------------------------


def statistics_of(size: int, file: Path) -> Path:
    Statistics(torch.zeros(size).double(), torch.eye(size).double(), 100).save(file)
    return file


CASES = [
    (["--eval.features=inceptoin"], ["no inceptoin features", "inception"]),
    (["--eval.features=inception", "--eval.weights=none.pt"], ["NAME=PATH", "got none.pt"]),
    (["--eval.features=scenes"], ["the scene classifier sees 32x32 images, not 8x8"]),
    (["--eval.reference=nowhere"], ["nowhere"]),
    (["--evaluate_samples=3"], ["evaluate_samples must be at least 4"]),
    (["--eval.prompts=prompts.txt"], ["told by classes, not by prompts"]),
    (["--eval.batch_size=0"], ["eval.batch_size must be at least 1"]),
    (["--best_metric=class_accuracy"], ["not measured: there is teacher_distance, teacher_kid"]),
    (["--evaluate_every=0"], ["eval.features is of measurements: give evaluate_every"]),
    (["--stop_after=2", "--evaluate_every=0"], ["stop_after goes by measurements"]),
    (["--export_best", "--evaluate_every=0"], ["export_best goes by measurements"]),
    (["--stop_margin=1"], ["stop_margin must lie in [0, 1)"]),
]


@pytest.mark.parametrize(("given", "says"), CASES, ids=lambda value: value[0])
def test_mistakes_are_said_before_anything_is_trained(
    given: list[str],
    says: list[str],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(teacher, tmp_path / "run", *given) == 2
    said = capsys.readouterr().err
    for words in says:
        assert words in said
    assert not (tmp_path / "run").exists()


def test_a_reference_of_another_extractor(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the training."""
    file = statistics_of(64, tmp_path / "other.safetensors")
    assert train(teacher, tmp_path / "run", "--eval.reference", file) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "other features" in said or "another extractor" in said
    assert not (tmp_path / "run").exists()


def test_other_measurements_than_before_are_refused(
    trained: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers would not compare: what has changed is named."""
    assert train(teacher, trained, "--evaluate_samples=80", "--max_steps=4") == 2
    assert "measured otherwise (samples: 60 there, 80 now)" in capsys.readouterr().err


def test_few_samples_are_warned_of_once(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer than the 32 features."""
    assert train(teacher, tmp_path / "run", "--evaluate_samples=20") == 0
    assert capsys.readouterr().err.count("evaluate_samples=20 give a trend, and no more: 20") == 1


def test_out_of_memory_is_explained(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what lowers it, which the settings of the training do not."""
    _, measuring, _ = prepared(teacher, 40, 16)

    def sampler(cond: Any, seeds: range) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(StepDistillError, match=r"16 samples at a time: give a smaller eval\.batch"):
        measuring.seeing.seen(sampler, range(40), measuring.wanted.open("cpu"))


def test_nan_is_an_error(teacher: Path, tmp_path: Path) -> None:
    """A generator that gives NaN: which seeds, and no number."""
    method, measuring, _ = prepared(teacher, 40, 16)
    with torch.no_grad():
        next(iter(method.roles["generator"].trainable().values())).fill_(float("nan"))
    student = student_sampler(method, measuring.seeing.told)
    with pytest.raises(NonFiniteError, match="while measuring, seeds 0 to 15: NaN or Inf in ima"):
        measuring.seeing.seen(student, range(40), measuring.wanted.open("cpu"))
