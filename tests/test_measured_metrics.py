"""The metrics of ``stepdistill eval`` during training: the same numbers as it gives of the same
images, several networks at once, scores of prompts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from safetensors.torch import load_file
from test_fid_command import weights as weights
from test_measuring import NUM, halves, measured, pictures
from test_measuring import train as train_default
from tiny_clips import dinov2_folder, transformers_folder
from tiny_pipelines import PIPELINES
from torch import Tensor

from stepdistill import checkpoint
from stepdistill.data.digits import digits
from stepdistill.distil import build_method, read_settings
from stepdistill.distil.options import DistilOptions
from stepdistill.distil.told import Order, Told
from stepdistill.distil.wanted import ALWAYS, Wanted, values_of
from stepdistill.errors import UserError
from stepdistill.evaluation.measures.image_metrics import METRICS, Compared
from stepdistill.evaluation.protocols.general import TEXT_SCORES
from stepdistill.evaluation.reading.measuring import Gathered, Measured, Want
from stepdistill.metrics.features import Features, eight_bit
from stepdistill.metrics.metric_names import named
from stepdistill.metrics.scorers.pickscore import pick_score
from stepdistill.metrics.scorers.torchmetrics_clip_score import torchmetrics_clip_score
from stepdistill.plans import StepPlan
from stepdistill.sampling import NoiseStreams, sample_student, sample_teacher
from stepdistill.teachers import LoadOptions, load_teacher

PROMPTS = ("a red cat", "a blue dog", "three apples")


pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP, for CMMD and for scores."""
    return transformers_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DINOv2."""
    return dinov2_folder(tmp_path_factory.mktemp("dinov2"), 16, 1)


# --- the same numbers as of the same images ----------------------------------------------------


def student_pictures(run: Path) -> Tensor:
    """Of the average in the checkpoint, x0 (NUM, 1, 8, 8)."""
    settings = read_settings("ect", ["--config", str(run / "config.yaml")])
    teacher = load_teacher(settings.get(DistilOptions).teacher)
    role = build_method("ect", settings, teacher).roles["generator"]
    checkpoint.load_average(run / "checkpoints" / "000002", role)
    plan, found = StepPlan.uniform(1), []
    for classes, block in halves(NUM):
        noise, cond = NoiseStreams(block), teacher.encode(classes)
        found.append(sample_student(role.frozen, plan, cond, (1, 8, 8), noise))
    return torch.cat(found)


def teacher_pictures(folder: Path) -> Tensor:
    """With the seeds behind the student's."""
    teacher, found = load_teacher(folder), []
    for classes, block in halves(NUM):
        z = NoiseStreams(NUM + i for i in block).normal((1, 8, 8))
        found.append(sample_teacher(teacher, teacher.encode(classes), z))
    return torch.cat(found)


@pytest.fixture
def others(dinov2: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Weights of what has an extractor of its own, for both commands."""
    monkeypatch.setenv("STEPDISTILL_DINOV2", str(dinov2))
    monkeypatch.setenv("STEPDISTILL_CLIP_336", str(clip))
    return [f"dinov2={dinov2}", f"clip-336={clip}"]


def by_the_command(a: Path, b: Path, names: list[str], *more: object) -> dict[str, float]:
    """The metrics of ``stepdistill eval images``."""
    record = a.with_suffix(".json")
    assert run("eval", "images", a, b, "--metrics", ",".join(names), *more, "--output", record) == 0
    found: dict[str, float] = json.loads(record.read_text())["metrics"]
    return found


def check_equal(found: dict[str, float], expected: dict[str, float]) -> None:
    """Every one of the expected, to rounding."""
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name


@pytest.mark.slow
def test_all_metrics_are_those_of_the_command(
    teacher: Path, weights: Path, others: list[str], tmp_path: Path
) -> None:
    """On three networks, of samples drawn once: as the command has them of the files of these
    very images. (Crops are the next test's: a distance of 2,048 features takes seconds.)"""
    names, folder = [name for name in METRICS if name != "patch_fid"], tmp_path / "run"
    own = ["--eval.features=inception", "--eval.weights", f"inception={weights}", *others]
    real = pictures(tmp_path / "real", digits()[0][:100])
    more = ["--eval.metrics", *names, "--eval.reference", real, "--diversity_alarm=0"]
    assert train_default(teacher, folder, *own, *more) == 0
    students = pictures(tmp_path / "students", student_pictures(folder))
    expected = by_the_command(students, real, names, "--features=inception", "--weights", weights)
    (found,) = measured(folder)
    assert {*found} == {*expected, "iteration", *ALWAYS}
    assert len(expected) == 9
    check_equal(found, expected)
    assert load_file(folder / "measured_teacher.safetensors").keys() == {"spread"}


@pytest.mark.slow
def test_the_teacher_is_a_reference_like_any_other(
    teacher: Path, others: list[str], tmp_path: Path
) -> None:
    """Three networks and a crop, by the files of the images; the kernel distance is taken in pairs.
    The teacher's features are kept, for each view.
    """

    names = [name for name in METRICS if name not in ("kid", "inception_score")]
    own, folder = ["--eval.metrics", *names, "kid", "--eval.weights", *others], tmp_path / "run"
    assert train_default(teacher, folder, *own) == 0
    real = pictures(tmp_path / "real", teacher_pictures(teacher))
    students = pictures(tmp_path / "students", student_pictures(folder))
    expected = by_the_command(students, real, names, "--features=digits")
    expected["distance"] = expected.pop("fid")
    (found,) = measured(folder)
    ours = {f"teacher_{name}" for name in (*expected, "kid")}
    assert {*found} == {*ours, "iteration", *ALWAYS}
    check_equal(found, {f"teacher_{name}": value for name, value in expected.items()})
    kept = load_file(folder / "measured_teacher.safetensors")
    views = ("digits", "digits-crop299", "dinov2", "clip-336")
    assert kept.keys() == {"spread", *(f"features/{view}" for view in views)}


@pytest.mark.slow
def test_a_resumed_run_measures_what_a_straight_one_does(
    teacher: Path, clip: Path, tmp_path: Path
) -> None:
    """Two extractors, the higher metric decides: the same lines to the last bit, the same kept
    features, and the checkpoint with the highest is the best; other metrics are refused."""
    own = ["--eval.metrics", "precision_recall", "cmmd", f"--eval.weights=clip-336={clip}"]
    own += ["--best_metric=teacher_recall", "--keep=1", "--method.lr=3e-3"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert train_default(teacher, straight, *own, "--max_steps=8") == 0
    assert train_default(teacher, resumed, *own, "--max_steps=4") == 0
    assert train_default(teacher, resumed, *own, "--max_steps=8") == 0
    rows = measured(straight)
    assert rows == measured(resumed)
    assert len(rows) == 4
    assert {"teacher_precision", "teacher_recall", "teacher_cmmd", *ALWAYS} < rows[0].keys()
    recalls = [row["teacher_recall"] for row in rows]
    best = checkpoint.best(straight / "checkpoints")
    assert best is not None
    assert recalls[int(best.name) // 2 - 1] == max(recalls) > min(recalls)
    file = "measured_teacher.safetensors"
    assert (straight / file).read_bytes() == (resumed / file).read_bytes()


def test_other_metrics_than_before_are_refused(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their curve would have a hole."""
    assert train_default(teacher, tmp_path / "run") == 0
    more = ["--eval.metrics=precision_recall", "--max_steps=4"]
    assert train_default(teacher, tmp_path / "run", *more) == 2
    assert "measured otherwise (metrics: ['fid', 'kid'] there, " in capsys.readouterr().err


# --- scores ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion and a file of prompts."""
    place = tmp_path_factory.mktemp("text")
    PIPELINES["sd15"]().save_pretrained(place / "teacher")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    return place


def train_text(place: Path, output: Path, *more: object) -> int:
    """DMD2 on prompts, measured after its two iterations on the scenes' classifier."""
    size = ["--load.height", 32, "--load.width", 32, "--method.gan_weight", 0]
    told = ["--teacher", place / "teacher", "--prompts", place / "prompts.txt"]
    short = ["--max_steps", 2, "--batch_size", 4, "--method.critic_steps", 1]
    own = ["--evaluate_every", 2, "--evaluate_samples", 14, "--eval.features", "scenes"]
    own += ["--eval.batch_size", 5]
    return run("train", "dmd2", *told, *size, *short, *own, "--output", output, *more)


def text_pictures(run: Path, prompts: list[str]) -> Tensor:
    """Of the averaged student of those prompts, told the samples 0, 1, ..., in blocks of five."""
    settings = read_settings("dmd2", ["--config", str(run / "config.yaml")])
    teacher = load_teacher(settings.get(DistilOptions).teacher, "cpu", settings.get(LoadOptions))
    role = build_method("dmd2", settings, teacher).roles["generator"]
    checkpoint.load_average(run / "checkpoints" / "000002", role)
    plan, found = StepPlan.uniform(1), []
    for begin in range(0, len(prompts), 5):
        told = prompts[begin : begin + 5]
        noise = NoiseStreams(range(begin, begin + len(told)))
        x0 = sample_student(role.frozen, plan, teacher.encode(told), teacher.sample_shape, noise)
        found.append(teacher.decode(x0))
    return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--eval.prompts", "--validation_prompts"])
def test_scores_are_of_the_samples_and_their_own_prompts(
    option: str, place: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two scorers beside an extractor: the means of both over the averaged student's images, each
    with what it was told. A score may decide. Other prompts in the file later are refused."""
    names = ("clip_score_torchmetrics", "pickscore")
    own = ["--eval.metrics", "fid", *names, "--best_metric=clip_score_torchmetrics"]
    own += ["--eval.weights", f"clip-torchmetrics={clip}", f"pickscore={clip}"]
    told = [place / "prompts.txt"] if option == "--eval.prompts" else PROMPTS
    folder = tmp_path / "run"
    assert train_text(place, folder, *own, option, *told) == 0
    (row,) = measured(folder)
    assert {*row} == {"iteration", "teacher_distance", *names, *ALWAYS}
    order = Order.of(14, 3)
    prompts = [PROMPTS[i] for i in order.places.tolist()]
    assert prompts[:6] == [*PROMPTS, *PROMPTS]
    pixels = eight_bit(text_pictures(folder, prompts))
    scorers = (torchmetrics_clip_score(str(clip)), pick_score(str(clip)))
    for name, scorer in zip(names, scorers, strict=True):
        scores = [
            float(scorer.of_pixels([p], [t])[0]) for p, t in zip(pixels, prompts, strict=True)
        ]
        assert row[name] == pytest.approx(np.mean(scores), rel=1e-5)
        turned = [*prompts[1:], prompts[0]]
        other = [float(scorer.of_pixels([p], [t])[0]) for p, t in zip(pixels, turned, strict=True)]
        assert row[name] != pytest.approx(np.mean(other), rel=1e-5)  # prompts do play a part
    assert checkpoint.best(folder / "checkpoints") == folder / "checkpoints" / "000002"
    if option == "--eval.prompts":
        other = tmp_path / "prompts.txt"
        other.write_text("\n".join(PROMPTS[::-1]))
        assert train_text(place, folder, *own, option, other, "--max_steps", 4) == 2
        said = capsys.readouterr().err
        assert "measured otherwise" in said
        assert "prompts: " in said
    assert load_file(folder / "measured_teacher.safetensors").keys() == {
        "spread",
        "features/scenes",
    }


def test_scores_need_prompts(
    place: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the training data are not known; said before anything is trained."""
    own = ["--eval.metrics", "pickscore", f"--eval.weights=pickscore={clip}"]
    assert train_text(place, tmp_path / "run", *own) == 2
    said = capsys.readouterr().err
    assert "pickscore scores images and their prompts" in said
    assert "give --eval.prompts or --validation_prompts" in said
    assert not (tmp_path / "run").exists()


def test_scores_need_weights(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which are not there: the scorer, the file and how to name it."""
    own = ["--eval.metrics", "fid", "pickscore", "--validation_prompts", "a cat"]
    assert train_text(place, tmp_path / "run", *own, "--eval.weights=pickscore=./none") == 2
    said = capsys.readouterr().err
    assert "by fid, pickscore (give" in said
    assert "there is no folder ./none" in said
    assert not (tmp_path / "run").exists()


# --- mistakes ----------------------------------------------------------------------------------

CASES = [
    (["--eval.metrics=fiid"], ["eval.metrics has no fiid", "Did you mean fid?"]),
    (["--eval.metrics=teacher_distance"], ["has no teacher_distance", "pickscore, aesthetic"]),
    (["--eval.metrics=lpips_diversity"], ["has no lpips_diversity"]),
    (["--eval.metrics=hpsv2"], ["hpsv2 scores images", "not told by text"]),
    (["--eval.metrics=cmmd", "--eval.weights=clip-336=./none"], ["no folder ./none", "by cmmd"]),
    (["--eval.weights=inceptoin=x"], ["no weights inceptoin", "Did you mean inception?"]),
    (["--eval.weights=digits=x"], ["there are no weights digits"]),
    (["--eval.metrics=inception_score"], ["digits features have no classes"]),
    (["--eval.metrics=density_coverage", "--evaluate_samples=5"], ["needs evaluate_samples of 6"]),
    (["--eval.metrics=fid", "--best_metric=fid"], ["best_metric=fid is not measured: there is te"]),
    (["--eval.metrics=fid", "--best_metric=num_samples"], ["cannot decide", "set it to teacher_d"]),
    (
        ["--eval.metrics=precision_recall", "--evaluate_every=2", "--stop_after=1"],
        ["stop_after needs a metric to go by", "teacher_recall"],
    ),
    (
        ["--eval.metrics=precision_recall", "--export_best"],
        ["export_best needs a metric to go by", "teacher_recall"],
    ),
    (["--eval.metrics=kid", "--evaluate_every=0"], ["eval.metrics is of measurements"]),
]


@pytest.mark.parametrize(("given", "says"), CASES, ids=lambda value: " ".join(value)[:60])
def test_mistakes_are_said_before_anything_is_trained(
    given: list[str],
    says: list[str],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_default(teacher, tmp_path / "run", *given) == 2
    said = capsys.readouterr().err
    for words in says:
        assert words in said
    assert not (tmp_path / "run").exists()


def test_references_that_do_not_do(
    teacher: Path, dinov2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few images for neighbours, moments alone for features, a FID on DINOv2."""
    few, many = (pictures(tmp_path / str(n), digits()[0][:n]) for n in (5, 40))
    kept = tmp_path / "moments.safetensors"
    assert run("eval", "reference", "--data", many, "--features=digits", "--output", kept) == 0
    cases: list[tuple[list[object], str]] = [
        (["--eval.metrics=density_coverage", f"--eval.reference={few}"], "needs 6 samples or more"),
        (["--eval.metrics=kid", f"--eval.reference={kept}"], "a mean and a covariance alone"),
        (
            ["--eval.features=dinov2", f"--eval.weights=dinov2={dinov2}",
             f"--eval.reference={many}"],
            "fid is not of dinov2 features: take the metrics fd_dinov2",
        ),
    ]  # fmt: skip
    for given, says in cases:
        assert train_default(teacher, tmp_path / "run", *given) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- names -------------------------------------------------------------------------------------


def test_what_metrics_say_of_themselves_is_so() -> None:
    """Each gives values of the names it says, of as few samples as it says, and of no fewer."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4)
    features = Features("some", 4, "", "RGB", lambda _: torch.empty(0), lambda x: x, logits=logits)

    def side(count: int) -> Measured:
        gathered = Gathered(Want(features, keep=True))
        gathered.add(torch.randn(count, 4))
        return gathered.measured({"path": "here"})

    for name, metric in METRICS.items():
        enough = metric.values(Compared(side(metric.least), side(metric.least), features, 0))[0]
        assert tuple(enough) == (metric.gives or (name,))
        if metric.least > 2:
            with pytest.raises(UserError):
                metric.values(Compared(side(metric.least - 1), side(metric.least - 1), features, 0))


def test_it_is_known_which_way_every_metric_gets_better(place: Path) -> None:
    """By its name in metrics.jsonl, the same whatever the reference."""
    teacher = load_teacher(place / "teacher")
    told = Told("prompts", 3, lambda _: teacher.encode(list(PROMPTS)), teacher, PROMPTS)
    names = (*METRICS, *TEXT_SCORES)
    wanted, by_teacher = (Wanted.of(names, "inception", {}, own, told) for own in (False, True))
    for ours, theirs in zip(wanted.names, by_teacher.names, strict=True):
        assert named(ours).goal == named(theirs).goal
        assert (named(ours).goal is None) == (ours == "num_samples")
    assert [value for m in wanted.measures for value in values_of(m)] == list(wanted.names[:-2])
    assert by_teacher.names[:3] == ("teacher_distance", "teacher_kid", "teacher_precision")
    assert "inception_score" in by_teacher.names
    assert "pickscore" in by_teacher.names
