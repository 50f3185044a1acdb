"""The command line: what --help says, what a run leaves behind, and that it can be repeated."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import check_exports_here, draw_no_report, run
from PIL import Image
from tiny import tiny_teacher_folder
from torch import Tensor

from stepdistill.cli import COMMANDS
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.fields import field_texts
from stepdistill.methods import METHODS

PROGRAMS = [["train", name] for name in METHODS]
PROGRAMS += [[name] for name in COMMANDS if name not in ("train", "methods", "families", "recipes")]


@pytest.fixture
def with_report() -> None:
    """Draw the curves of report.html too, which takes longer than these runs."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    check_exports_here(monkeypatch)
    if "with_report" not in request.fixturenames:
        draw_no_report(monkeypatch)


def train(method: str, teacher: Path, output: Path, *more: object) -> int:
    """Three iterations on the digits, unless ``more`` says otherwise."""
    given = ["--teacher", teacher, "--output", output, "--data", "digits"]
    return run("train", method, *given, "--max_steps=3", "--batch_size=8", "--log_every=1", *more)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(student: Path) -> bytes:
    return (student / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


# ---- help


@dataclass(frozen=True)
class Example:
    """An example.

    Args:
        output: where to,
            on two lines
        both: the comment beside a field wins
    """

    output: str
    plain: int = 3  # 10 % of "it"
    both: float = 0.5  # this
    pair: tuple[float, float] = (
        1.0,
        2.0,
    )  # (mean, std)
    many: tuple[str, ...] = ()  # names; default: all
    maybe: int | None = None  # a count
    switch: bool = False  # on or off
    silent: int = 0


def test_words_beside_fields_are_read() -> None:
    """A trailing comment or an entry of Args, also where the field spans lines."""
    assert field_texts(Example) == {
        "output": "where to, on two lines",
        "plain": '10 % of "it"',
        "both": "this",
        "pair": "(mean, std)",
        "many": "names; default: all",
        "maybe": "a count",
        "switch": "on or off",
    }


def test_help_shows_the_words_placeholders_and_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, with the default as one would type it."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as left:
        parse("program", (Example,), {"group": Example}, ["--help"], {"plain": 7})
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: program --output OUTPUT --group.output OUTPUT [options]" in shown
    for line in (
        "--output OUTPUT where to, on two lines (required)",
        '--plain N 10 % of "it" (default: 7)',
        '--group.plain N 10 % of "it" (default: 3)',
        "--both X this (default: 0.5)",
        "--pair [X,X] (mean, std) (default: [1.0,2.0])",
        "--many [NAME,...] names; default: all --",
        "--maybe N a count (default: none)",
        "--switch [true|false] on or off (default: false)",
    ):
        assert line in shown


def test_a_note_keeps_its_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list at the end of --help stays one; a long line goes on below its own words."""
    monkeypatch.setenv("COLUMNS", "40")
    note = "names:\n  one    the first of them, of which much can be said\n  two    short"
    with pytest.raises(SystemExit):
        parse("program", (Example,), {}, ["--help"], note=note)
    assert capsys.readouterr().out.endswith(
        "names:\n  one    the first of them, of which\n         much can be said\n  two    short\n"
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_every_option_of_every_command_is_explained(
    program: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0, and each option has words and (required) or a default."""
    monkeypatch.setenv("COLUMNS", "120")
    assert run(*program, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: stepdistill {' '.join(program)}")
    listed = re.split(r"\n\n(?:protocols|metrics):\n", shown)[0]  # the note is not of options
    entries = re.findall(r"^  (\S.*\n(?:    .*\n)*)", f"{listed}\n", re.MULTILINE)
    options = [" ".join(entry.split()) for entry in entries]
    assert len(options) > 3
    for option in options:
        if option.startswith(("-h, --help", "--config FILE")):
            continue
        name, _, text = option.partition(" ")
        if name.startswith("--"):
            text = text.partition(" ")[2]  # the placeholder
        words = re.sub(r" ?\((required|default: .+)\)$", "", text)
        assert len(words) > 3, f"no words for {option}"
        assert words != text or re.search(r"\bdefault:? \S|^\(needed\)", words), (
            f"no default for {option}"
        )


def test_train_help_names_all_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The loop's, the method's and LoRA's options are all there, and the preset of the digits."""
    assert run("train", "dmd2", "--help") == 0
    shown = capsys.readouterr().out
    for name in ("teacher", "max_steps", "seed", "resume", "method.gan_weight", "lora.rank"):
        assert f"--{name} " in shown
    assert "With --teacher digits the defaults are: max_steps" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []], ids=str)
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command with its line."""
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(text)}", shown)


def test_help_does_not_wait_for_torch() -> None:
    """In a fresh process, --help and --version import neither torch nor the option parser."""
    script = (
        "import sys; from stepdistill.cli import main; main(['--help']); main(['--version'])\n"
        "print([m for m in ('torch', 'diffusers', 'jsonargparse', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_programs_run_by_themselves(tmp_path: Path) -> None:
    """A trainer started as a module, in a fresh process: a mistake is one sentence and exit 2."""
    command = [sys.executable, "-m", "stepdistill.trainers.dmd2", "--teacher=t", "--max_step=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.endswith("error: there is no option --max_step. Did you mean --max_steps?\n")
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    """``stepdistill --help | head -0`` ends without a traceback."""
    command = [sys.executable, "-c", "from stepdistill.cli import main; main(['--help'])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_train_help_lists_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    """``train --help`` leaves with 0, its usage and the methods."""
    assert run("train", "--help") == 0
    shown = capsys.readouterr().out
    assert "usage: stepdistill train METHOD" in shown
    assert ", ".join(METHODS) in shown


def test_methods_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON list of cards; the same as text."""
    assert run("methods", "--json") == 0
    cards = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in cards] == list(METHODS)
    for card in cards:
        assert {"name", "paper", "needs", "guidance", "teachers"} <= card.keys()
        assert "arXiv" in card["paper"]
    assert run("methods") == 0
    shown = capsys.readouterr().out
    for card in cards:
        assert card["paper"] in shown
    assert run("methods", "--help") == 0
    assert "--json" in capsys.readouterr().out


# ---- spellings


@pytest.mark.parametrize(
    "arguments",
    [
        ["--group.plain", "5", "--switch"],
        ["--group.plain=5", "--switch=true"],
        ["--switch", "true", "--group.plain=5"],
        ["--switch", "yes", "--group.plain=5"],
    ],
    ids=str,
)
def test_spellings_of_options(arguments: list[str]) -> None:
    """Bare switches, = or a space."""
    values = parse("p", (Example,), {"group": Example}, [*arguments, *OUTPUTS]).resolved
    assert values["group"]["plain"] == 5
    assert values["switch"] is True


def test_dashes_and_switches_in_groups() -> None:
    """--a-b is --a_b, and a switch in a group may be bare too."""

    settings = parse("p", (Dashed,), {"group": Dashed}, ["--two-words", "4", "--group.on-off"])
    assert settings.resolved["two_words"] == 4
    assert settings.resolved["group"]["on_off"] is True
    assert settings.resolved["on_off"] is False


@dataclass(frozen=True)
class Dashed:
    """Dashed."""

    two_words: int = 1  # a
    on_off: bool = False  # b


OUTPUTS = ["--output=o", "--group.output=g"]


def test_the_command_line_wins_over_yaml_in_any_order(tmp_path: Path) -> None:
    """--config may stand before or after what overrides it; nested and dotted keys are read."""
    file = tmp_path / "run.yaml"
    file.write_text("plain: 4\npair: [3, 4]\ngroup:\n  plain: 5\n  both: 1e-4\ngroup.maybe: 6\n")
    for order in (["--config", str(file), "--plain=9"], ["--plain=9", f"--config={file}"]):
        values = parse("p", (Example,), {"group": Example}, [*OUTPUTS, *order]).resolved
        assert values["plain"] == 9
        assert values["pair"] == [3, 4]
        assert values["group"]["plain"] == 5
        assert values["group"]["both"] == 1e-4
        assert values["group"]["maybe"] == 6


def test_required_fields_may_be_positional() -> None:
    """``sample STUDENT``; the others keep their flags."""
    values = parse("p", (Example,), {}, ["here", "--plain=2"], positional=True).resolved
    assert (values["output"], values["plain"]) == ("here", 2)
    with pytest.raises(UserError, match="p needs output"):
        parse("p", (Example,), {}, [], positional=True)


def test_a_positional_given_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    """``train`` takes --teacher and ``precompute`` does not: the sentence shows how."""
    assert run("precompute", "--teacher", "digits", "--output", "cache") == 2
    said = capfd.readouterr().err
    assert "teacher is given without its name: stepdistill precompute teacher [options]" in said


# ---- runs


CASES = [
    ("ect", 1, ()),
    ("dmd2", 2, ("--lora.rank", "4")),
    pytest.param("dmd2", 4, ("--method.through_all_steps", "true"), marks=pytest.mark.slow),
    pytest.param("dmd2", 1, (), marks=pytest.mark.slow),
    pytest.param("dmd2", 4, (), marks=pytest.mark.slow),
    pytest.param("ect", 4, (), marks=pytest.mark.slow),
    pytest.param("ect", 1, ("--lora.rank", "4"), marks=pytest.mark.slow),
]


def test_train_writes_the_report(teacher: Path, tmp_path: Path, with_report: None) -> None:
    """A page with the settings, beside the student, whose card has what was measured of it."""
    measure = ("--evaluate_every=3", "--evaluate_samples=1000")
    assert train("ect", teacher, tmp_path, *measure) == 0
    assert "max_steps" in (tmp_path / "report.html").read_text()
    measured = {k: v for line in lines(tmp_path) for k, v in line.items() if k.startswith("eval/")}
    card = json.loads((tmp_path / "student" / "stepdistill.json").read_text())
    assert measured.pop("eval/seconds") > 0
    measured.pop("eval/diversity_alarm", None)
    assert card["metrics"] == {k.removeprefix("eval/"): v for k, v in measured.items()}
    text = (tmp_path / "student" / "README.md").read_text()
    assert f"| fid | {card['metrics']['fid']:.6g} |" in text
    assert card["data"] == "images of digits"


@pytest.mark.parametrize(("method", "steps", "more"), CASES, ids=str)
def test_train_leaves_a_run_folder(
    method: str, steps: int, more: tuple[str, ...], teacher: Path, tmp_path: Path
) -> None:
    """Settings, metrics, a checkpoint, samples, and a student for stock diffusers."""
    from diffusers import ConsistencyModelPipeline, DiffusionPipeline

    assert train(method, teacher, tmp_path, "--steps", steps, "--sample_every=2", *more) == 0
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["max_steps"] == 3
    assert settings["steps"] == steps
    assert [line["iteration"] for line in lines(tmp_path) if "images_per_second" in line] == [
        1,
        2,
        3,
    ]
    assert (tmp_path / "checkpoints" / "000003" / "state.safetensors").exists()
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["000002.png", "000003.png"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert type(pipeline) is ConsistencyModelPipeline
    assert pipeline.unet.class_embedding.weight.shape[0] == 10
    assert pipeline.scheduler.config.clip_denoised is False
    assert pipeline.scheduler.config.num_train_timesteps == steps + 1
    images = pipeline(batch_size=2, num_inference_steps=steps, class_labels=[3, 4]).images
    assert images[0].size == (8, 8)
    card = json.loads((tmp_path / "student" / "stepdistill.json").read_text())
    assert (card["method"], card["iteration"], len(card["plan"]["times"])) == (method, 3, steps)
    assert card["plan"]["whole"] is ("--method.through_all_steps" in more)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_a_run_with_its_teacher_in_int8(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trained, exported and checked, not as with the whole teacher; which may not go on for it."""
    given = ("--method.gan_weight=0", "--method.critic_steps=1", "--method.generator_lr=1e-3")
    assert train("dmd2", teacher, tmp_path / "whole", *given) == 0
    assert train("dmd2", teacher, tmp_path / "int8", *given, "--memory.teacher_int8") == 0
    assert weights(tmp_path / "int8" / "student") != weights(tmp_path / "whole" / "student")
    assert train("dmd2", teacher, tmp_path / "int8", *given, "--max_steps=4") == 2
    assert "teacher_int8" in capfd.readouterr().err


@pytest.mark.slow
def test_config_yaml_repeats_the_run_to_the_last_bit(teacher: Path, tmp_path: Path) -> None:
    """The same seed, or the written config.yaml, gives identical weights; another seed does not."""
    first, again, repeated, other = (tmp_path / name for name in "abcd")
    assert train("dmd2", teacher, first, "--seed=5", "--method.critic_steps=2") == 0
    assert train("dmd2", teacher, again, "--seed=5", "--method.critic_steps=2") == 0
    assert run("train", "dmd2", "--config", first / "config.yaml", "--output", repeated) == 0
    assert train("dmd2", teacher, other, "--seed=6", "--method.critic_steps=2") == 0
    assert weights(again / "student") == weights(first / "student")
    assert weights(repeated / "student") == weights(first / "student")
    assert weights(other / "student") != weights(first / "student")
    assert weights(first / "student") != weights(teacher)


def test_yaml_with_overrides(teacher: Path, tmp_path: Path) -> None:
    """A run from a file; what is given beside it wins and is written down."""
    file = tmp_path / "run.yaml"
    values = {"teacher": str(teacher), "output": str(tmp_path / "run"), "data": "digits"}
    group = {"q": 4.0, "lr": 1e-3}
    file.write_text(yaml.safe_dump({**values, "max_steps": 9, "batch_size": 8, "method": group}))
    assert run("train", "ect", "--config", file, "--max_steps", 2, "--method.lr", "2e-3") == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["max_steps"], written["method"]["q"], written["method"]["lr"]) == (2, 4.0, 2e-3)
    assert (tmp_path / "run" / "checkpoints" / "000002").exists()


def test_the_same_command_goes_on_or_does_nothing_more(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run stays as it is; with more iterations it continues after the last."""
    assert train("ect", teacher, tmp_path) == 0
    before, student = lines(tmp_path), weights(tmp_path / "student")
    assert train("ect", teacher, tmp_path, "--resume") == 0
    assert lines(tmp_path) == before
    assert weights(tmp_path / "student") == student
    assert train("ect", teacher, tmp_path, "--max_steps=5") == 0
    assert lines(tmp_path)[: len(before)] == before
    iterations = [line["iteration"] for line in lines(tmp_path)]
    assert iterations == sorted(iterations)
    assert iterations[-1] == 5
    assert weights(tmp_path / "student") != student
    assert "from iteration 3" in capsys.readouterr().err


def test_a_signal_is_a_clean_save(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM: exit 0, a checkpoint and a sentence; the same command then finishes the run."""

    def terminate() -> None:
        while not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert train("ect", teacher, tmp_path, "--max_steps=100000") == 0
    thread.join()
    [saved] = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert f"stopped at iteration {saved}" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()
    assert train("ect", teacher, tmp_path, f"--max_steps={saved + 1}") == 0
    assert lines(tmp_path)[-1]["iteration"] == saved + 1
    assert (tmp_path / "student" / "model_index.json").exists()


def test_without_a_gan_no_data_is_needed(teacher: Path, tmp_path: Path) -> None:
    """DMD2 with gan_weight 0 learns from the teacher alone."""
    given = ["--teacher", teacher, "--output", tmp_path, "--max_steps=2", "--batch_size=8"]
    assert run("train", "dmd2", *given, "--method.gan_weight=0") == 0
    assert (tmp_path / "student").exists()


def image_folder(folder: Path, names: list[str], size: int = 20) -> Path:
    """``folder``/NAME/0.png and 1.png of random colours."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_images_is_resized_and_skips_are_counted(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_report: None
) -> None:
    """Colour images of another size fit a grey teacher; what is left out is said and logged."""
    data = image_folder(tmp_path / "data", ["cat", "dog"])
    (data / "cat" / "0.png").write_bytes(b"no image")
    given = ["--teacher", teacher, "--output", tmp_path / "run", "--data", data, "--skip_corrupt"]
    assert run("train", "ect", *given, "--max_steps=2", "--batch_size=4") == 0
    said = capsys.readouterr().err
    assert f"3 images in {data} of 2 classes (cat = 0, dog = 1)" in said
    assert f"1 unreadable left out: {data}/cat/0.png" in said
    assert lines(tmp_path / "run")[0] == {"iteration": 0, "data/images": 3, "data/skipped": 1}
    assert (tmp_path / "run" / "report.html").exists()


def test_an_unconditional_teacher(tmp_path: Path) -> None:
    """Its student has no classes; sub-folders of the data are not classes to it."""
    teacher = tiny_teacher_folder(tmp_path / "teacher", null_class=None, num_class_embeds=None)
    data = image_folder(tmp_path / "data", ["one", "two"], size=8)
    given = ["--teacher", teacher, "--output", tmp_path / "run", "--data", data]
    assert run("train", "dmd2", *given, "--max_steps=2", "--batch_size=4") == 0
    assert (
        json.loads((tmp_path / "run/student/unet/config.json").read_text())["num_class_embeds"]
        is None
    )
    assert run("sample", tmp_path / "run/student", "--output", tmp_path / "grid.png") == 0


# ---- export and sample


@pytest.fixture(scope="module")
def trained(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-step run with checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        draw_no_report(patch)
        assert train("ect", teacher, folder, "--steps=4", "--save_every=1", "--keep=3") == 0
    return folder


def test_export_of_a_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest by default, which is the run's own student; a named one otherwise."""
    assert run("export", trained, "--output", tmp_path / "newest") == 0
    assert "000003" in capsys.readouterr().out
    assert weights(tmp_path / "newest") == weights(trained / "student")
    assert run("export", trained, "--output", tmp_path / "first", "--checkpoint", 1) == 0
    assert weights(tmp_path / "first") != weights(trained / "student")
    assert json.loads((tmp_path / "first" / "stepdistill.json").read_text())["iteration"] == 1


def test_sample_a_grid(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One PNG; its folder is made."""
    output = tmp_path / "new" / "grid.png"
    given = ["--num=12", "--steps", 2, "--labels", "[1,3]", "--output", output]
    assert run("sample", trained / "student", *given) == 0
    assert Image.open(output).size[0] > Image.open(output).size[1] > 16
    assert capsys.readouterr().out.strip() == str(output)


def test_sample_a_teacher_by_its_real_classes(teacher: Path, tmp_path: Path) -> None:
    """Without labels: 0 to 9 in turn, never the null class 10, though the network has it."""
    from stepdistill.students import load_student

    student = load_student(teacher)
    assert student.labels(12) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert student.pipeline.unet.config.num_class_embeds == 11
    assert run("sample", teacher, "--num=3", "--output", tmp_path / "grid.png") == 0


def heun(teacher: Path, labels: list[int], seeds: range, steps: int, scale: float) -> Tensor:
    """What ``sample_teacher`` makes of a pixel teacher."""
    from stepdistill.sampling import NoiseStreams, sample_teacher
    from stepdistill.teachers import load_teacher

    loaded = load_teacher(teacher)
    z = NoiseStreams(seeds).normal(loaded.sample_shape)
    x0 = sample_teacher(loaded, loaded.encode(labels), z, steps, scale)
    return x0.clamp(-1, 1)


def test_a_pixel_teacher_is_sampled_by_heuns_method(teacher: Path) -> None:
    """Its stock pipeline would noise x0_hat again at each step, as its students do. Guidance is
    its own, and the batch size changes nothing."""
    from stepdistill.students import load_student

    loaded, labels, seeds = load_student(teacher), [3, 1, 4, 1, 5], range(7, 12)
    for scale in (1.0, 2.0):
        own = loaded.sample(labels, seeds, 4, batch_size=2, **loaded.guidance(scale))
        assert torch.allclose(own, heun(teacher, labels, seeds, 4, scale), atol=1e-5)
    assert loaded.steps(None) == 18


@pytest.mark.parametrize(("asked", "steps"), [({}, 18), ({"compare_steps": 3}, 3)])
def test_the_row_of_a_pixel_teacher(
    teacher: Path, trained: Path, asked: dict[str, int], steps: int
) -> None:
    """--compare shows what ``sample_teacher`` makes, not the re-noising of the stock pipeline."""
    from evals.generate import Options, rows_of
    from stepdistill.students import load_student

    student = trained / "student"
    options = Options(str(student), compare=str(teacher), guidance_scale=1.5, **asked)
    row, own = rows_of(options, load_student(student))
    assert (row.label, own.label) == (f"teacher, {steps} steps", "student, 4 steps")
    expected = heun(teacher, [0, 1, 2], range(5, 8), steps, 1.5)
    assert torch.allclose(row.sample(range(5, 8)), expected, atol=1e-5)


def test_sample_a_folder_by_image_seed(trained: Path, tmp_path: Path) -> None:
    """Image i has seed + i: the same for other batch sizes, and in a run that begins later."""

    def sampled(name: str, *more: object) -> dict[str, np.ndarray]:
        output = tmp_path / name
        given = ["--labels=[4]", "--output", output, *more]
        assert run("sample", trained / "student", *given) == 0
        return {p.name: np.asarray(Image.open(p), dtype=int) for p in sorted(output.iterdir())}

    one, three = (
        sampled("one", "--num=7", "--batch_size=1"),
        sampled("three", "--num=7", "--batch_size=3"),
    )
    later = sampled("later", "--num=3", "--seed=4")
    assert list(one) == list(three) == [f"{i:06d}.png" for i in range(7)]
    assert list(later) == [f"{i:06d}.png" for i in (4, 5, 6)]
    for name, image in one.items():
        assert np.abs(image - three[name]).max() <= 1  # rounding alone
    for name, image in later.items():
        assert np.abs(image - one[name]).max() <= 1
    assert np.abs(one["000000.png"] - one["000001.png"]).max() > 1
