"""What a mistake gets: a sentence that names the thing and the mend, and the right exit code.

``run`` fails a test that ends in anything but an exit, so no case here shows a traceback. Exit
codes: 2 for a mistake in what was asked, 3 for NaN or Inf, 1 for anything else.
"""

from __future__ import annotations

import errno
import fcntl
import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import check_exports_here, draw_no_report, run
from PIL import Image
from tiny import tiny_teacher_folder
from tiny_pipelines import PIPELINES

from stepdistill.backbones.pixel import EDMPixels

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-step run of two iterations."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        draw_no_report(patch)
        given = ["--teacher", teacher, "--output", folder, "--data", "digits", "--steps=4"]
        assert run("train", "ect", *given, "--max_steps=2", "--batch_size=8") == 0
    return folder


pytestmark = pytest.mark.usefixtures("quick_runs")


class Refusal:
    """Runs a command and compares its exit code and message."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, says: list[str], code: int = 2) -> str:
        self.capsys.readouterr()
        assert run(*arguments) == code
        said = self.capsys.readouterr().err
        message = said[said.index("error: ") :]
        for words in says:
            assert words in message, f"{words!r} not in {message!r}"
        assert "Traceback" not in said
        return message


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(capsys)


def short(teacher: Path, output: Path) -> list[object]:
    """The options of a run of two iterations."""
    return ["--teacher", teacher, "--output", output, "--max_steps=2", "--batch_size=8"]


# ---- options

TRAIN = ["train", "dmd2", "--teacher=t", "--output=o"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--max_step", "4"], ["no option --max_step.", "Did you mean --max_steps?"]),
        (["--max-step=4"], ["Did you mean --max_steps?"]),
        (["--method.gan_weigth=1"], ["method.gan_weigth", "Did you mean --method.gan_weight?"]),
        (["--metod.gan_weight=1"], ["Did you mean --method.gan_weight?"]),
        (["--gan_weight=1"], ["Did you mean --method.gan_weight?"]),
        (["--xyzzy"], ["no option --xyzzy", "stepdistill train dmd2 --help"]),
        (["--method=1"], ["--method is a group of options", "--method.critic_lr"]),
        (["-n", "4"], ["no option -n"]),
        (["--max_steps", "abc"], ["--max_steps must be a whole number, got abc"]),
        (["--max_steps=1.5"], ["--max_steps must be a whole number, got 1.5"]),
        (["--max_steps"], ["--max_steps needs a value"]),
        (["--resume=maybe"], ["--resume must be true or false, got maybe"]),
        (["--method.gan_weight", "big"], ["--method.gan_weight must be a number, got big"]),
        (["--betas", "0.1"], ["--betas must be a list of 2 values such as [0.5, 0.9], got 0.1"]),
        (["--betas=[0.1,0.2,0.3]"], ["--betas must be a list of 2 values"]),
        (["stray"], ["unexpected stray"]),
        (["--config"], ["--config needs a value"]),
        (["--batch_size=0"], ["batch_size must be at least 1, got 0"]),
        (["--max_steps=-3"], ["max_steps must be at least 1, got -3"]),
        (["--steps=0"], ["steps must be at least 1, got 0"]),
        (["--evaluate_samples=0"], ["evaluate_samples must be at least 1, got 0"]),
        (["--betas=[0.9,1.5]"], ["betas must lie in [0, 1)"]),
    ],
    ids=str,
)
def test_wrong_options(given: list[str], says: list[str], refused: Refusal) -> None:
    """Unknown ones with the nearest right one, and wrong values with the option and the value."""
    refused(*TRAIN, *given, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_step: 3", ["no option max_step in", "Did you mean max_steps?"]),
        ("max-steps: 3", ["Did you mean max_steps?"]),
        ("method:\n  gan_weigth: 1", ["method.gan_weigth in", "Did you mean method.gan_weight?"]),
        ("gan_weight: 1", ["Did you mean method.gan_weight?"]),
        ("max_steps: many", ["max_steps in", "must be a whole number, got many"]),
        ("method:\n  gan_weight: big", ["method.gan_weight in", "must be a number, got big"]),
        ("max_steps:", ["max_steps in", "must be a whole number, got null"]),
        ("data: 5", ["data in", "must be text, got 5"]),
        ("method: 3", ["method in", "is a group: put its options below it"]),
        ("method:", ["method in", "is a group"]),
        ("betas: [1, 2, 3]", ["betas in", "must be a list of 2 values"]),
        ("a: [1, 2", ["line 1 is not valid YAML"]),
        ("a: 1\n  b: 2", ["line 2 is not valid YAML"]),
        ("- 1", ["must hold options"]),
        ("just words", ["must hold options"]),
        ("", ["must hold options"]),
        ("\x00", ["is not valid YAML"]),
    ],
    ids=repr,
)
def test_wrong_config_files(text: str, says: list[str], refused: Refusal, tmp_path: Path) -> None:
    """As on the command line, with the file's name."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    refused(*TRAIN, "--config", file, says=[str(file), *says])


def test_config_files_that_cannot_be_read(refused: Refusal, tmp_path: Path) -> None:
    """A missing one, a folder, one that is not text."""
    says = ["cannot read the config file"]
    refused(*TRAIN, "--config=none.yaml", says=[*says, "none.yaml", "No such file"])
    refused(*TRAIN, "--config", tmp_path, says=[*says, str(tmp_path), "Is a directory"])
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    refused(*TRAIN, "--config", tmp_path / "run.yaml", says=[*says, "not text"])


def test_what_is_required(refused: Refusal) -> None:
    """Flags for train, the bare names of sample."""
    refused("train", "dmd2", says=["stepdistill train dmd2 needs --teacher, --output"])
    refused("train", "dmd2", "--teacher=t", says=["needs --output"])
    refused("sample", says=["stepdistill sample needs student"])
    refused("fid", "digits", says=["stepdistill fid needs b"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["smaple"], ["no command smaple", "Did you mean sample?", "quickstart"]),
        (["train"], ["needs a method", "dmd2, disback, fdiv"]),
        (["train", "--teacher=t", "dmd2"], ["needs a method, before its options"]),
        (["train", "dmd22"], ["no method dmd22", "Did you mean dmd2?", "dmd2, disback, fdiv"]),
        (["methods", "--yaml"], ["takes --json alone"]),
    ],
    ids=str,
)
def test_unknown_commands(given: list[str], says: list[str], refused: Refusal) -> None:
    """The nearest right one, and what there is."""
    refused(*given, says=says)


# ---- teachers


def changed(change: Callable[[Path], object]) -> Callable[[Path, Path], Path]:
    """A copy of the teacher with ``change`` done to it."""

    def make(teacher: Path, place: Path) -> Path:
        shutil.copytree(teacher, place / "teacher")
        change(place / "teacher")
        return place / "teacher"

    return make


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def config_of(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def other_scheduler(folder: Path) -> None:
    from diffusers import DDPMScheduler

    DDPMScheduler().save_pretrained(folder / "scheduler")
    config_of(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])


TEACHERS: dict[str, tuple[Callable[[Path, Path], Path], list[str]]] = {
    "missing": (lambda _, p: p / "none", ["there is no folder", "built in: digits"]),
    "a file": (lambda t, _: t / WEIGHTS, ["is no checkpoint that can be told by its names"]),
    "not diffusers": (lambda _, p: p, ["is not a diffusers folder", "model_index.json"]),
    "one level up": (lambda t, _: t.parent, ["is not a diffusers folder", "did you mean"]),
    "other family": (
        changed(lambda f: config_of(f / "model_index.json", _class_name="AudioLDMPipeline")),
        ["is a AudioLDMPipeline, which is not supported", "ConsistencyModelPipeline"],
    ),
    "truncated weights": (
        changed(lambda f: truncate(f / WEIGHTS)),
        ["could not be loaded", "look damaged", WEIGHTS],
    ),
    "weights gone": (changed(lambda f: (f / WEIGHTS).unlink()), ["could not be loaded"]),
    "weights of another size": (
        changed(lambda f: config_of(f / "unet/config.json", block_out_channels=[8, 16])),
        ["could not be loaded"],
    ),
    "truncated index": (
        changed(lambda f: truncate(f / "model_index.json")),
        ["model_index.json is not readable JSON"],
    ),
    "truncated card": (
        changed(lambda f: truncate(f / "stepdistill.json")),
        ["stepdistill.json is not readable JSON"],
    ),
    "card of another kind": (
        changed(lambda f: (f / "stepdistill.json").write_text("[]")),
        ["stepdistill.json must hold a JSON object"],
    ),
    "other scheduler": (
        changed(other_scheduler),
        ["DDPMScheduler", "CMStochasticIterativeScheduler"],
    ),
    "null class out of range": (
        changed(lambda f: (f / "stepdistill.json").write_text('{"null_class": 11}')),
        ["null class 11"],
    ),
    "not square": (
        changed(lambda f: config_of(f / "unet/config.json", sample_size=[8, 16])),
        ["samples squares, not 8x16"],
    ),
    "impossible noise range": (
        changed(lambda f: config_of(f / "scheduler/scheduler_config.json", sigma_min=100.0)),
        ["sigma_min", "100.0 and 80.0"],
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_that_cannot_be_used(
    name: str, teacher: Path, tmp_path: Path, refused: Refusal
) -> None:
    """Named, with what is wrong; no run folder is left."""
    make, says = TEACHERS[name]
    given = short(make(teacher, tmp_path), tmp_path / "run")
    refused("train", "dmd2", *given, "--data=digits", says=says)
    assert not (tmp_path / "run").exists()


def test_a_hub_id_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal
) -> None:
    """Offline; and whatever the hub client raises, of which the first line is shown."""
    given = ["train", "dmd2", *short(Path("nobody/nothing"), tmp_path / "run")]
    says = ["nobody/nothing is neither a folder nor a model the hub could give"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(*given, says=says)

    def fails(_: str) -> None:
        raise ConnectionError("no route to host\nand\nmuch\nmore")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", fails)
    message = refused(*given, says=[*says, "no route to host"])
    assert message.count("\n") == 1


def test_a_plan_that_could_not_be_exported(teacher: Path, tmp_path: Path, refused: Refusal) -> None:
    """Refused before the training, not after it."""
    given = ["train", "ect", "--data=digits", *short(teacher, tmp_path / "run")]
    refused(*given, "--times=[1,0.9,0.1]", says=["no rho gives", "0.9, 0.1"])
    refused(*given, "--times=[0.5,1]", says=["step times must fall"])
    refused(*given, "--times=[1,0.5]", "--steps=4", says=["steps=4, but times has 2"])
    assert not (tmp_path / "run").exists()


def test_a_class_has_no_tokens(teacher: Path, tmp_path: Path, refused: Refusal) -> None:
    """A length of prompts, asked of a teacher without any."""
    given = ["train", "ect", "--data=digits", *short(teacher, tmp_path / "run")]
    refused(*given, "--load.max_tokens=5", says=["ConsistencyModelPipeline", "leave max_tokens"])
    assert not (tmp_path / "run").exists()


def test_guidance_needs_a_null_conditioning(tmp_path: Path, refused: Refusal) -> None:
    """Asked of a teacher without a null class."""
    teacher = tiny_teacher_folder(tmp_path / "teacher", null_class=None, num_class_embeds=10)
    given = [*short(teacher, tmp_path / "run"), "--data=digits", "--method.guidance_scale=2"]
    refused("train", "dmd2", *given, says=["guidance_scale=2.0", "null conditioning"])
    assert not (tmp_path / "run").exists()


# ---- data


def picture(file: Path, value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(file)
    return file


def corrupt(folder: Path) -> Path:
    """Three images a class, one in the middle cut off."""
    for name in ("0", "1"):
        for i in range(3):
            picture(folder / name / f"{i}.png", 40 * i)
    (folder / "0" / "1.png").write_bytes((folder / "0" / "1.png").read_bytes()[:45])
    return folder


def test_data_that_cannot_be_used(teacher: Path, tmp_path: Path, refused: Refusal) -> None:
    """A missing folder, an empty one, a corrupt image, one beside classes, too many classes."""
    given = ["train", "ect", *short(teacher, tmp_path / "run"), "--data"]
    refused(*given, tmp_path / "none", says=["no folder of images at", "none"])
    (tmp_path / "empty").mkdir()
    refused(*given, tmp_path / "empty", says=[f"{tmp_path}/empty holds no images", ".png"])
    folder = corrupt(tmp_path / "corrupt")
    refused(*given, folder, says=[f"{folder}/0/1.png is not a readable image", "--skip_corrupt"])
    truncate(picture(tmp_path / "broken" / "0" / "only.png"))
    refused(*given, tmp_path / "broken", "--skip_corrupt", says=["no image in", "is readable"])
    picture(tmp_path / "mixed" / "0" / "a.png")
    picture(tmp_path / "mixed" / "b.png")
    refused(*given, tmp_path / "mixed", says=["mixed/b.png lies beside class folders"])
    picture(tmp_path / "flat" / "a.png")
    refused(*given, tmp_path / "flat", says=["no class sub-folders", "10 classes"])
    for i in range(11):
        picture(tmp_path / "eleven" / f"{i}" / "a.png")
    refused(*given, tmp_path / "eleven", says=["11 classes", "10 would be class 10"])
    assert not (tmp_path / "run").exists()


def test_digits_fit_only_their_own_shape(tmp_path: Path, refused: Refusal) -> None:
    """A teacher of three channels, or of five classes, cannot learn from them."""
    colour = tiny_teacher_folder(tmp_path / "colour", in_channels=3, out_channels=3)
    given = ["train", "dmd2", "--data=digits", *short(colour, tmp_path / "run")]
    refused(*given, says=["8x8 grey images of 10 classes", f"{colour} makes (3, 8, 8)"])
    five = tiny_teacher_folder(tmp_path / "five", null_class=5, num_class_embeds=6)
    given = ["train", "dmd2", "--data=digits", *short(five, tmp_path / "run")]
    refused(*given, says=["8x8 grey images of 10 classes", f"{five} has 5 classes"])


def test_a_gan_and_ect_need_real_data(teacher: Path, tmp_path: Path, refused: Refusal) -> None:
    """A folder teacher brings none."""
    given = short(teacher, tmp_path / "run")
    refused("train", "dmd2", *given, says=["data unless gan_weight is 0", "--data"])
    refused("train", "ect", *given, says=["ect needs data", "--data"])
    assert not (tmp_path / "run").exists()


# ---- run folders


def test_run_folders_that_cannot_be_used(
    teacher: Path, trained: Path, tmp_path: Path, refused: Refusal
) -> None:
    """Unwritable, in use, of other settings, or not to be gone on with."""
    (tmp_path / "file").write_text("")
    given = ["train", "ect", "--data=digits", *short(teacher, tmp_path / "file" / "run")]
    refused(*given, says=["cannot make the run folder", "file/run"])
    again = ["train", "ect", "--data=digits", "--steps=4", *short(teacher, trained)]
    with (trained / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(*again, says=[f"{trained} is in use by another process"])
    refused(*again, "--seed=4", says=["other settings", "seed: 0 there, 4 now"])
    refused(*again, "--method.q=8", says=["other settings", "8.0 now"])
    refused(*again, "--resume=false", says=["resume is off", str(trained)])
    metrics = (trained / "metrics.jsonl").read_text()
    assert run(*again) == 0
    assert (trained / "metrics.jsonl").read_text() == metrics


def test_nan_ends_with_3(teacher: Path, tmp_path: Path, refused: Refusal) -> None:
    """A learning rate that is far too high: the message names the role and the mend."""
    given = ["--teacher", teacher, "--output", tmp_path, "--data=digits", "--batch_size=8"]
    refused(
        *("train", "ect", *given, "--max_steps=9", "--method.lr=1e30"),
        says=["NaN or Inf", "generator", "learning rate"],
        code=3,
    )
    assert not (tmp_path / "student").exists()


# ---- full disks


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write beyond ``size`` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def test_disk_full_at_export(trained: Path, tmp_path: Path, refused: Refusal) -> None:
    """Weights that cannot be written: exit 1, nothing half written, the earlier student whole."""
    student = (trained / "student" / WEIGHTS).read_bytes()
    with files_of_at_most(10_000):
        refused("export", trained, says=["could not write the student to"], code=1)
    assert (trained / "student" / WEIGHTS).read_bytes() == student
    assert not list(trained.glob("*.partial"))


def test_disk_full_at_samples(
    teacher: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal
) -> None:
    """Grids of a run, and what ``sample`` writes."""
    monkeypatch.setattr(Image.Image, "save", full)
    says = ["could not write", "No space left on device"]
    given = ["--data=digits", "--sample_every=1", *short(teacher, tmp_path / "run")]
    refused("train", "ect", *given, says=says, code=1)
    student = trained / "student"
    for output in (tmp_path / "grid.png", tmp_path / "images"):
        refused("sample", student, "--num=2", "--output", output, says=says, code=1)


def test_disk_full_anywhere_else(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal
) -> None:
    """A place that does not speak for itself: still a sentence."""
    monkeypatch.setattr("stepdistill.distil.run.write_yaml", full)
    given = ["train", "ect", "--data=digits", *short(teacher, tmp_path / "run")]
    refused(*given, says=["could not write somewhere: No space left on device"], code=1)


# ---- students


def test_samples_that_cannot_be_drawn(trained: Path, tmp_path: Path, refused: Refusal) -> None:
    """Steps outside the plan, no images, unknown classes, nowhere to write, no student."""
    student = trained / "student"
    refused("sample", student, "--steps=3", says=["4 trained steps", "[1, 2, 4]"])
    refused("sample", student, "--steps=0", says=["[1, 2, 4]"])
    refused("sample", student, "--num=0", says=["num must be at least 1, got 0"])
    refused("sample", student, "--batch_size=0", says=["batch_size must be at least 1"])
    refused("sample", student, "--labels=[3,10]", says=["0 to 9", "[10]"])
    (tmp_path / "file").write_text("")
    for output in ("file/grid.png", "file"):
        refused("sample", student, "--output", tmp_path / output, says=["cannot write to"])
    refused("sample", tmp_path / "none", says=["there is no folder"])
    refused("sample", trained, says=["not a diffusers folder", f"did you mean {student}?"])


def test_a_model_of_others_takes_any_steps_but_zero(teacher: Path, refused: Refusal) -> None:
    """Without a plan of ours the number is free; 0 is not 1."""
    refused("sample", teacher, "--steps=0", says=["steps must be at least 1, got 0"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: truncate(f / WEIGHTS), ["could not be loaded", "look damaged"]),
        (lambda f: (f / "unet/config.json").unlink(), ["could not be loaded"]),
        (lambda f: truncate(f / "stepdistill.json"), ["stepdistill.json is not readable JSON"]),
        (lambda f: truncate(f / "model_index.json"), ["model_index.json is not readable JSON"]),
        (
            lambda f: config_of(f / "stepdistill.json", plan={"times": [1]}),
            ["no readable step plan"],
        ),
        (
            lambda f: config_of(f / "stepdistill.json", plan={"times": [1, 2], "move": "ode"}),
            ["plan"],
        ),
    ],
    ids=["weights", "no config", "card", "index", "plan without move", "rising plan"],
)
def test_damaged_students(
    damage: Callable[[Path], object],
    says: list[str],
    trained: Path,
    tmp_path: Path,
    refused: Refusal,
) -> None:
    """Named, before anything is sampled."""
    shutil.copytree(trained / "student", tmp_path / "student")
    damage(tmp_path / "student")
    given = ["--output", tmp_path / "grid.png"]
    refused("sample", tmp_path / "student", *given, says=[str(tmp_path / "student"), *says])


# ---- export


def test_exports_that_cannot_be_made(trained: Path, tmp_path: Path, refused: Refusal) -> None:
    """No run, no such checkpoint, an output that would be overwritten or cannot be written."""
    refused("export", tmp_path, says=["holds no checkpoint"])
    refused("export", trained, "--checkpoint=7", says=["no checkpoint 7", "[2]"])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for output in (mine, mine / "thesis.txt"):
        refused("export", trained, "--output", output, says=[f"{output} holds something"])
    assert (mine / "thesis.txt").read_text() == "years of work"
    output = mine / "thesis.txt" / "student"
    refused("export", trained, "--output", output, says=["cannot write to", str(output)])


def test_a_run_does_not_replace_what_is_no_student(
    teacher: Path, tmp_path: Path, refused: Refusal
) -> None:
    """Something else where the student will lie is seen before the training."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("years of work")
    given = ["train", "ect", "--data=digits", *short(teacher, tmp_path)]
    refused(*given, says=[f"{tmp_path}/student holds something that is no student"])
    assert not list((tmp_path / "checkpoints").iterdir())
    assert (tmp_path / "student" / "thesis.txt").exists()


def test_an_export_does_not_replace_a_teacher(
    teacher: Path, trained: Path, refused: Refusal
) -> None:
    """It has a stepdistill.json too, but no plan."""
    refused("export", trained, "--output", teacher, says=["holds something that is no student"])
    assert (teacher / WEIGHTS).exists()


def test_damaged_checkpoints_and_runs_of_other_programs(
    teacher: Path, trained: Path, tmp_path: Path, refused: Refusal
) -> None:
    """Torn weights, and a checkpoint that is not of ``train``."""
    shutil.copytree(trained, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "000002"
    truncate(checkpoint / "state.safetensors")
    refused("export", tmp_path / "run", says=["state.safetensors is damaged"])
    again = ["train", "ect", "--data=digits", "--steps=4", *short(teacher, tmp_path / "run")]
    refused(*again, says=["state.safetensors is damaged", "remove"])
    config_of(checkpoint / "state.json", settings={"lr": 1})
    refused("export", tmp_path / "run", says=["is not a run of stepdistill train"])


def test_an_export_that_differs_from_the_trainer_fails(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal
) -> None:
    """Weights changed while they are saved: exit 1, and no folder is left."""
    saved = EDMPixels.save

    def perturbed(family: EDMPixels, *rest: Any) -> None:
        saved(family, *rest)
        from safetensors.torch import load_file, save_file

        tensors = load_file(rest[-1] / WEIGHTS)
        save_file({**tensors, "conv_out.bias": tensors["conv_out.bias"] + 0.1}, rest[-1] / WEIGHTS)

    monkeypatch.setattr(EDMPixels, "save", perturbed)
    output = tmp_path / "student"
    says = ["other samples than the trainer", "at 1 steps", "tolerance"]
    refused("export", trained, "--output", output, says=says, code=1)
    assert not list(tmp_path.iterdir())


# ---- values of methods and adapters


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["--method.t_min=0.9", "--method.t_max=0.1"],
            ["t_min=0.9, t_max=0.1: 0 <= t_min < t_max"],
        ),
        (["--method.t_max=5"], ["t_max=5.0", "t_max <= 1 is needed"]),
        (["--method.t_min=-0.1"], ["t_min=-0.1"]),
        (["--method.critic_log_normal=[0,-1]"], ["critic_log_normal=0.0, -1.0", "std above 0"]),
        (["--method.matching_log_normal=[.nan,1]"], ["matching_log_normal=nan, 1.0"]),
        (["--method.gan_weight=-1"], ["gan_weight must be at least 0, got -1.0"]),
        (["--method.gan_critic_weight=-1"], ["gan_critic_weight must be at least 0"]),
        (["--method.r1_weight=.inf"], ["r1_weight must be at least 0, got inf"]),
        (["--method.r1_std=0"], ["r1_std must be above 0, got 0.0"]),
        (["--method.guidance_scale=-2"], ["guidance_scale must be at least 0, got -2.0"]),
        (["--method.guidance_interval=[0.7,0.2]"], ["guidance_interval=0.7, 0.2"]),
        (["--method.gan_t_max=1.5"], ["gan_t_max=1.5"]),
        (["--lora.rank=4", "--lora.alpha=0"], ["alpha must be above 0", "got 0.0"]),
        (["--lora.rank=4", "--lora.alpha", "-1e-5"], ["alpha must be above 0", "got -1e-05"]),
    ],
    ids=str,
)
def test_values_that_no_training_can_mean(
    given: list[str], says: list[str], refused: Refusal
) -> None:
    """Refused with the options, before the teacher is looked for."""
    refused(*TRAIN, *given, says=says)


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("fdiv", ["divergence=total_variation"], ["total_variation is none of reverse_kl"]),
        ("fdiv", ["divergence=nowhere:h"], ["divergence names nowhere:h"]),
        ("fdiv", ["divergence=math:exp"], ["math:exp cannot be called with a tensor (B,)"]),
        ("fdiv", ["divergence=torch:neg"], ["torch:neg gives no weight h(r)", "at r = [0.1"]),
        ("fdiv", ["f=torch:exp2", "gan_own_noise=true"], ["gan_own_noise false"]),
        ("fdiv", ["gan_weight=0"], ["gan_weight must be above 0"]),
        ("fdiv", ["ratio_min=30"], ["ratio_min=30.0, ratio_max=20.0"]),
        ("fdiv", ["bins=0"], ["bins must be at least 1"]),
        ("dmd", ["regression_weight=-1"], ["regression_weight must be at least 0"]),
        ("vsd", ["critic_dropout=2"], ["critic_dropout must lie in [0, 1], got 2.0"]),
        ("vsd", ["critic_rank=-4"], ["rank must be at least 0"]),
        ("snoopi", ["guidance_range=[3,1]"], ["guidance_range=3.0, 1.0"]),
        ("snoopi", ["negative_prompt=blurry"], ["not told by text"]),
        ("sid", ["alpha=.nan"], ["alpha must be a number, got nan"]),
        ("sfd", [], ["sfd needs something to forget"]),
        ("sfd", ["forget=11"], ["the classes 0 to 9, and no 11"]),
        ("sfd", ["forget=3", "override=3"], ["override names what is to be forgotten: 3"]),
        ("sfd", ["forget=3", "forget_weight=0"], ["forget_weight must be above 0"]),
        ("ladd", ["log_normal=[0,-1]"], ["log_normal=0.0, -1.0", "std above 0"]),
    ],
    ids=str,
)
def test_values_that_a_method_cannot_take(
    method: str, given: list[str], says: list[str], tmp_path: Path, refused: Refusal
) -> None:
    """Refused before anything is written."""
    own = [f"--method.{one}" for one in given]
    refused("train", method, "--teacher=digits", f"--output={tmp_path / 'run'}", *own, says=says)
    assert not list(tmp_path.iterdir())


def test_a_negative_number_with_an_exponent_is_a_value(
    teacher: Path, tmp_path: Path, refused: Refusal
) -> None:
    """As after "=": what is wrong with it is its sign."""
    given = ["train", "dmd2", "--data=digits", *short(teacher, tmp_path / "run")]
    says = ["the learning rate of the generator must be above 0, got -1e-05"]
    refused(*given, "--method.generator_lr", "-1e-5", says=says)
    refused(*given, "--method.generator_lr=-1e-5", says=says)


def test_a_lora_in_place_of_a_whole_student(tmp_path: Path, refused: Refusal) -> None:
    """To sample it, and to begin from it as a teacher: its card has the code that loads it."""
    (tmp_path / "stepdistill.json").write_text(json.dumps({"lora": "lora.safetensors", "plan": {}}))
    says = [f"{tmp_path} holds a LoRA", str(tmp_path / "README.md")]
    refused("sample", tmp_path, "--prompt", "a", says=says)
    refused("train", "dmd2", "--teacher", tmp_path, "--output", tmp_path / "run", says=says)


def test_times_that_no_stock_scheduler_follows(tmp_path: Path, refused: Refusal) -> None:
    """The mend is told in the option's own numbers, and is one."""
    folder = tmp_path / "teacher"
    PIPELINES["ddpm"]().save_pretrained(folder)
    given = ["train", "dmd2", *short(folder, tmp_path / "run"), "--method.gan_weight=0"]
    message = refused(*given, "--steps=3", says=["timesteps [999.0, 665.7, 332.3]"])
    times = re.search(r"as with --times (\S+)", message)
    assert times is not None
    assert times[1] == "[0.999,0.666,0.333]"
    assert run(*given, "--times", times[1], "--max_steps=1") == 0
