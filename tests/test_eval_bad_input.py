"""``stepdistill eval`` against full disks, damaged work, wrong devices and wrong options.

Each is a sentence, and what was finished is kept."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run
from PIL import Image
from run_tiny import free_port
from safetensors.torch import load_file, save_file
from test_eval_protocols import noise_images
from test_fid_command import weights as weights
from test_fid_command import write_student
from tiny import tiny_teacher
from tiny_pipelines import video as tiny_videos

from stepdistill.assets import Asset
from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.measures.measure import PromptDiversity
from stepdistill.evaluation.measures.weights import weights_of
from stepdistill.evaluation.models.subject import SHAPE, check_shape
from stepdistill.evaluation.protocols import PROTOCOLS
from stepdistill.evaluation.protocols.general import TEXT_SCORES
from stepdistill.evaluation.references.stored import save_reference
from stepdistill.evaluation.running.work import WorkFolder
from stepdistill.metrics.extractors import EXTRACTORS
from stepdistill.metrics.scorers import SCORERS
from stepdistill.students import load_student

NUM = 40  # three shards of 16, 16 and 8 samples


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-step student of a random teacher of 8x8 grey images."""
    place = tmp_path_factory.mktemp("models")
    return write_student(tiny_teacher(place / "teacher"), place / "student")


def fixed(output: Path, *more: object) -> tuple[object, ...]:
    """The arguments of a short evaluation."""
    return ("--protocol", "digits", "--num", NUM, "--batch_size", 8, "--output", output, *more)


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    """A work folder with a shard in it."""
    made = WorkFolder(tmp_path / "o.json.parts")
    with made.held({}):
        made.write(0, {"digits": torch.arange(12.0).reshape(3, 4)}, {"seconds": []})
    return made


@pytest.fixture
def no_room() -> object:
    """No file may grow past two kilobytes: as a full disk, without filling one."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def shut() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))

    yield shut
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_shards_before(folder: WorkFolder, no_room: object) -> None:
    """safetensors has an error of its own for it; nothing half-written stays."""
    assert callable(no_room)
    no_room()
    with pytest.raises(
        StepDistillError, match=r"could not write .*000001\.safetensors .*too large"
    ):
        folder.write(1, {"digits": torch.zeros(1000)}, {})
    with pytest.raises(StepDistillError, match=r"could not write .*r\.safetensors \(.*too large"):
        save_reference_of(folder.path / "r.safetensors")
    assert sorted(file.name for file in folder.path.iterdir()) == [
        ".lock",
        "000000.safetensors",
        "settings.json",
    ]
    assert folder.read(0, "digits").shape == (3, 4)


def save_reference_of(file: Path) -> None:
    """Statistics of 64 features."""
    from stepdistill.evaluation.reading.measuring import Measured
    from stepdistill.metrics.extractors import extractor
    from stepdistill.metrics.frechet import Statistics

    mean, covariance = torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
    measured = Measured(Statistics(mean, covariance, 9), {})
    save_reference(file, measured, extractor("digits"), {})


@pytest.mark.parametrize("damage", ["a bit", "NaN", "cut", "another file", "no hash"])
def test_a_damaged_shard_is_named(folder: WorkFolder, damage: str) -> None:
    """By its hash, whatever the damage makes of the numbers."""
    file = folder.file(0)
    whole = file.read_bytes()
    if damage == "a bit":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "NaN":
        file.write_bytes(whole[:-4] + torch.tensor([float("nan")]).numpy().tobytes())
    elif damage == "cut":
        file.write_bytes(whole[:-1])
    elif damage == "another file":
        file.write_text("text")
    else:
        save_file(load_file(file), file)
    with pytest.raises(UserError, match=r"000000\.safetensors is missing or damaged .*: remove it"):
        folder.read(0, "digits")
    if damage not in ("a bit", "NaN"):
        with pytest.raises(UserError, match=r"000000\.safetensors is missing or damaged"):
            folder.facts(0)


@pytest.mark.slow
def test_the_command_on_a_full_disk(student: Path, tmp_path: Path) -> None:
    """Exit code 1 and one sentence; with room again the same command goes on to the end."""
    output = tmp_path / "o.json"
    given = [str(one) for one in (student, *fixed(output, "--batch_size", 64))]
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        f"from stepdistill.cli import main; main(['eval', *{given!r}])"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: could not write" in done.stderr
    assert "000000.safetensors" in done.stderr
    assert run("eval", *given) == 0
    assert json.loads(output.read_text())["metrics"]["fid"] > 0


@pytest.mark.parametrize(
    "device", ["foo", "cuda:99", *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_device_that_is_not_here(
    device: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is loaded."""
    assert run("eval", student, *fixed(tmp_path / "o.json", "--device", device)) == 2
    assert f"there is no device {device} here" in capsys.readouterr().err


def test_features_go_where_they_can(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is refused before the first sample."""
    (tmp_path / "file").write_text("mine")
    given = fixed(tmp_path / "o.json", "--keep_features", tmp_path / "file")
    assert run("eval", student, *given) == 2
    assert f"cannot write features to {tmp_path / 'file'}" in capsys.readouterr().err
    assert not (tmp_path / "o.json.parts").exists()


def test_a_record_means_that_the_features_are_there(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written first: where they cannot be, there is no record, and the work stays."""
    output, features = tmp_path / "o.json", tmp_path / "features"
    given = fixed(output, "--keep_features", features)
    with monkeypatch.context() as patch:
        patch.setattr("stepdistill.evaluation.running.kept.save_whole", refuse)
        assert run("eval", student, *given) == 1
    assert not output.exists()
    assert len(list((tmp_path / "o.json.parts").glob("*.safetensors"))) == 3
    assert run("eval", student, *given) == 0
    assert output.exists()
    assert [file.name for file in features.iterdir()] == ["digits.safetensors"]


def refuse(*_: object) -> None:
    """As a disk that fills up."""
    raise StepDistillError("could not write")


def two(student: Path, *given: object) -> list[tuple[int, str]]:
    """(exit code, what is said) of two processes of one command."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stepdistill.evals.evaluate_model",
                *map(str, (student, *given)),
            ],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=240)[1] for process in ranks]
    return [(process.returncode, own) for process, own in zip(ranks, said, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["settings", "reference", "protocol"])
def test_two_processes_leave_with_one_sentence(wrong: str, student: Path, tmp_path: Path) -> None:
    """Whether it is found by all, by the main one before the work, or in the middle of it."""
    output = tmp_path / "o.json"
    given, says = fixed(output, "--num", 400), "begun otherwise"
    if wrong == "settings":
        parts = tmp_path / "o.json.parts"
        parts.mkdir()
        (parts / "settings.json").write_text("{}")
        (parts / "begun").touch()
    elif wrong == "protocol":
        given, says = fixed(output, "--protocol", "digit"), "there is no protocol digit"
    else:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "0.png").write_bytes(b"no image")
        own = ("--protocol", "custom", "--features", "digits", "--reference", tmp_path / "real")
        given, says = fixed(output, *own, "--num", 400), "0.png is not a readable image"
    main, other = two(student, *given)
    assert main[0] == other[0] == 2
    assert says in main[1]
    assert "error: " not in other[1]
    assert "Traceback" not in main[1] + other[1]
    assert not output.exists()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["fid", "diversity"], ["fid", "diversity"]),
        (["fid,diversity"], ["fid", "diversity"]),
        (["[fid,diversity]"], ["fid", "diversity"]),
        (["fid, diversity"], ["fid", "diversity"]),
    ],
)
def test_metrics_have_one_syntax(
    given: list[str], names: list[str], student: Path, tmp_path: Path
) -> None:
    """Words, commas, or a list, in both commands."""
    output = tmp_path / "o.json"
    assert run("eval", student, *fixed(output, "--metrics", *given)) == 0
    assert set(names) <= json.loads(output.read_text())["metrics"].keys()
    assert "class_accuracy" not in json.loads(output.read_text())["metrics"]
    asked = [one.replace("diversity", "precision_recall") for one in given]
    sides = (student, "digits", "--num", NUM, "--output", tmp_path / "images.json")
    assert run("eval", "images", *sides, "--metrics", *asked) == 0
    assert json.loads((tmp_path / "images.json").read_text())["metrics"].keys() == {
        "fid",
        "precision",
        "recall",
    }


@pytest.mark.parametrize("command", ["eval", "images"])
def test_no_metric_at_all(
    command: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence, not everything or nothing."""
    given = fixed(tmp_path / "o.json") if command == "eval" else ("digits",)
    first = ("eval",) if command == "eval" else ("eval", "images")
    for empty in ("", ",", "[]") if command == "images" else ("", ","):
        assert run(*first, student, *given, "--metrics", empty) == 2
        assert "metrics is empty: name some" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["inception=a.pt"], {"inception": "a.pt", "inception-tf": "a.pt"}),
        (["inception=a", "inception-tf=b"], {"inception": "a", "inception-tf": "b"}),
        (["inception-tf=b", "inception=a"], {"inception": "a", "inception-tf": "b"}),
        (["clip_score_vit_g_14=a=b.bin"], {"clip-vit-g-14": "a=b.bin"}),
        (["lpips_diversity=a", "pickscore=b"], {"lpips": "a", "pickscore": "b"}),
    ],
)
def test_names_of_weights(given: list[str], found: dict[str, str]) -> None:
    """Of networks, or of the metrics that are of one."""
    assert weights_of(given) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nonsense=nofile", "there are no weights nonsense. They are named inception,"),
        ("incepton=a.pt", "there are no weights incepton. Did you mean inception?"),
        ("digits=a.pt", "there are no weights digits."),
        ("a.pt", "weights are given as NAME=PATH, such as inception=FILE, got a.pt"),
    ],
)
def test_weights_of_nothing(
    given: str, said: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is loaded."""
    assert run("eval", student, *fixed(tmp_path / "o.json", "--weights", given)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_sentence_of_missing_weights_can_be_typed(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it names works as it is, in each command that says it."""
    for name in ("a", "b"):
        noise_images(tmp_path / name, 3, (16, 16))
    sides = (tmp_path / "a", tmp_path / "b")
    commands = [("fid", *sides), ("eval", "images", *sides)]
    commands += [("eval", "reference", "--data", sides[0], "--output", tmp_path / "r.safetensors")]
    for command in commands:
        assert run(*command, "--weights", tmp_path / "absent.pt") == 2
        assert "name it with --weights inception=FILE, or" in capsys.readouterr().err
        for typed in (f"inception={weights}", weights):
            assert run(*command, "--weights", typed) == 0
    assert run(*commands[1], "--weights", f"dinov2={weights}") == 2
    assert "is not of inception, which is measured on" in capsys.readouterr().err


def test_what_the_sentences_name_is_a_name_of_weights() -> None:
    """Of every asset."""
    weights_of_all = {**SCORERS, **EXTRACTORS, "lpips": None}
    options = [asset.option for asset in every_asset()]
    assert len(options) == 10
    for option in options:
        flag, _, named = option.partition(" ")
        assert flag == "--weights"
        assert named.partition("=")[0] in weights_of_all


def every_asset() -> list[Asset]:
    """Of weights, wherever one is named."""
    modules = [own for name, own in sys.modules.items() if name.startswith("stepdistill.metrics.")]
    found = [one for own in modules for one in vars(own).values() if isinstance(one, Asset)]
    return list({id(one): one for one in found}.values())


def test_help_lists_what_may_be_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protocols one a line, metrics and weights by their names; what is needed has no default."""
    monkeypatch.setenv("COLUMNS", "100")
    assert run("eval", "--help") == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    for name in PROTOCOLS:
        assert len([line for line in lines if line.startswith(f"  {name} ")]) == 1
    words = set(shown.replace(",", " ").split())
    assert {*TEXT_SCORES, "lpips_diversity", "kid", "class_accuracy"} <= words
    assert {*SCORERS, "dinov2", "lpips", "inception-tf"} <= words
    assert "(needed)" in shown
    for option in shown.replace("\n", " ").split(" --"):
        assert not ("(needed)" in option and "(default:" in option)
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_a_video_of_another_shape(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its pipeline takes goes to its call, and into the record."""
    size = ("--height", 16, "--width", 32, "--frames", 5)
    tiny_videos.wan_t2v().save_pretrained(tmp_path / "wan")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    real, output = noise_images(tmp_path / "real", 4, (16, 32)), tmp_path / "o.json"
    own = ("--protocol", "custom", "--prompts", tmp_path / "prompts.txt", "--reference", real)
    given = (*own, "--weights", f"inception={weights}", "--output", output, "--steps", 2)
    images = ("--images", tmp_path / "images")
    assert run("eval", tmp_path / "wan", *given, *size, *images) == 0
    with Image.open(tmp_path / "images" / "000000.png") as image:
        assert image.size == (32, 16)
    record = json.loads(output.read_text())
    assert record["model"]["call"] == {"height": 16, "width": 32, "num_frames": 5}
    output.unlink()
    assert run("eval", tmp_path / "wan", *given, "--height", 17, "--frames", 5) == 2
    assert "cannot be sampled at height 17, frames 5: " in capsys.readouterr().err


def test_a_shape_that_is_not_taken(
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a pipeline without such an argument, or by a student of one shape."""
    assert run("eval", student, *fixed(tmp_path / "o.json", "--height", 16)) == 2
    assert "takes no height: leave --height out" in capsys.readouterr().err
    model = replace(load_student(student), call={"batch_size": 1})
    check_shape("s", model, {"batch_size": 1})
    monkeypatch.setitem(SHAPE, "batch_size", "batch")
    with pytest.raises(UserError, match="always sampled at batch_size=1, as it was trained"):
        check_shape("s", model, {"batch_size": 2})


def test_a_corrupt_reference_image(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence's own mend works, and the record counts what was left out."""
    real, output = noise_images(tmp_path / "real", 4, (8, 8)), tmp_path / "o.json"
    (real / "corrupt.png").write_bytes(b"no image")
    own = ("--protocol", "custom", "--features", "digits", "--reference", real)
    given = ("eval", student, *fixed(output), *own)
    assert run(*given) == 2
    assert "corrupt.png is not a readable image" in (said := capsys.readouterr().err)
    assert "give --skip_corrupt" in said
    assert run(*given, "--skip_corrupt") == 0
    [reference] = json.loads(output.read_text())["reference"].values()
    assert reference["num_samples"] == 4
    assert reference["skipped"] == 1


def test_what_a_metric_lacks_is_said_before_sampling(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes of the extractor, enough samples, a FID that there is; and room for the features."""
    output = tmp_path / "o.json"
    given = ("eval", student, "--protocol", "custom", "--num", 4, "--output", output)
    for more, said in (
        (("--features", "digits", "--metrics", "inception_score"), "features have no classes"),
        (("--features", "digits", "--metrics", "kid,precision_recall"), "needs --num of 6 or more"),
        (("--features", "dinov2"), "fid is not of dinov2 features"),
    ):
        assert run(*given, *more, "--reference", student) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parts"))
    noise_images(tmp_path / "few", 5, (8, 8))
    given = ("eval", student, "--protocol", "custom", "--features", "digits", "--num", 20)
    few = ("--reference", tmp_path / "few", "--metrics", "precision_recall", "--output", output)
    assert run(*given, *few) == 2
    assert "precision_recall needs 6 samples or more of a reference" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parts/0*.safetensors"))


def test_no_room_for_the_features(
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found before the first sample, with how much they take."""
    free = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr("stepdistill.files.shutil.disk_usage", lambda _: free)
    assert run("eval", student, *fixed(tmp_path / "o.json")) == 2
    assert "the features of all samples" in (said := capsys.readouterr().err)
    assert "GB left" in said


def test_one_prompt_has_a_diversity_and_no_error() -> None:
    """LPIPS at a fixed prompt: a standard error over prompts there is not."""

    class One:
        def groups(self) -> torch.Tensor:
            return torch.tensor([0.25])

    measure = PromptDiversity("lpips_diversity", "")
    assert measure.values(One()) == {"lpips_diversity": 0.25}
    assert measure.errors(One(), 10) == {}


@pytest.mark.parametrize("option", ["--images", "--keep_features"])
def test_a_folder_that_is_removed_at_the_end(
    option: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is asked for is not put where it would be deleted."""
    output = tmp_path / "o.json"
    for folder in ("o.json.parts", "o.json.parts/mine"):
        assert run("eval", student, *fixed(output, option, tmp_path / folder)) == 2
        assert f"give another folder as {option}" in capsys.readouterr().err
    assert not output.exists()
