"""``stepdistill eval MODEL --protocol NAME``: what it measures, whatever the batches, the processes
and the kills; the sentences for mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from run_tiny import free_port
from safetensors.torch import load_file
from test_fid_command import weights as weights
from test_fid_command import write_student
from tiny import tiny_teacher
from torch import Tensor

from stepdistill.evaluation.running.work import cut
from stepdistill.metrics.quality import floor, measure
from stepdistill.students import load_student

Evaluate = Callable[..., dict[str, Any]]
NUM = 260


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-step student of a random teacher of 8x8 grey images."""
    place = tmp_path_factory.mktemp("models")
    return write_student(tiny_teacher(place / "teacher"), place / "student")


@pytest.fixture
def evaluate(tmp_path: Path, student: Path) -> Evaluate:
    """Run the command and read the record it wrote."""

    def command(name: str, *more: object, model: object = student) -> dict[str, Any]:
        output = tmp_path / f"{name}.json"
        fixed = ("--protocol", "digits", "--num", NUM, "--output", output)
        assert run("eval", model, *fixed, *more) == 0
        assert not output.with_name(output.name + ".parts").exists()
        record: dict[str, Any] = json.loads(output.read_text())
        return record

    return command


@pytest.mark.parametrize(
    ("num", "repeats", "batch_size", "sizes"),
    [
        (40, 1, 1, [16, 16, 8]),
        (40, 1, 7, [21, 19]),
        (40, 1, 64, [40]),
        (130, 1, 64, [64, 64, 2]),
        (20, 2, 16, [16, 4, 16, 4]),
    ],
)
def test_shards_are_whole_batches(
    num: int, repeats: int, batch_size: int, sizes: list[int]
) -> None:
    """The fewest whole batches that make 16 samples; no sample twice or left out, none spans two
    repeats."""
    shards = cut(num, repeats, batch_size)
    assert [shard.end - shard.begin for shard in shards] == sizes
    assert [i for s in shards for i in range(s.begin, s.end)] == [*range(num * repeats)]
    assert all(s.begin // num == (s.end - 1) // num == s.repeat for s in shards)
    assert [s.number for s in shards] == [*range(len(sizes))]


def images_of(folder: Path) -> np.ndarray[Any, Any]:
    """All images of a folder by their names, (N, H, W)."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def test_the_record_is_what_the_library_measures(evaluate: Evaluate, student: Path) -> None:
    """On the digits it is ``quality.measure`` of the same labels and seeds, to rounding; the two
    moments' orders of addition differ."""
    record = evaluate("whole", "--seed", 7, "--batch_size", 8)
    model = load_student(student)

    def sampler(labels: Tensor, seeds: range) -> Tensor:
        return model.sample(labels.tolist(), seeds, 2)

    quality = measure(sampler, NUM, seed=7)
    assert record["metrics"]["fid"] == pytest.approx(quality.fid, rel=1e-6)
    assert record["metrics"]["class_accuracy"] == pytest.approx(quality.class_accuracy)
    assert record["metrics"]["diversity"] == pytest.approx(quality.diversity, rel=1e-5)
    assert record["metrics"]["fid_floor"] == floor(NUM)
    assert record["errors"]["fid"] > 0
    share = quality.class_accuracy / 100
    expected = 100 * (share * (1 - share) / NUM) ** 0.5
    assert record["errors"]["class_accuracy"] == pytest.approx(expected)
    assert record["sampling"]["calls"] == record["sampling"]["steps"] == 2
    assert record["model"]["role"] == "student"
    assert "260 samples, and the protocol's count is 50,000" in record["notes"][0]


def test_batches_change_nothing(evaluate: Evaluate, tmp_path: Path) -> None:
    """Batches of 1, 7 and 64: the same labels, images within 1e-5 (here 8-bit ones), distances
    within 1e-4."""
    records = {}
    for size in (1, 7, 64):
        records[size] = evaluate(
            str(size), "--batch_size", size, "--images", tmp_path / f"images{size}"
        )
    for size in (1, 7):
        told = [records[n]["sampling"]["told_sha256"] for n in (size, 64)]
        assert told[0] == told[1]
        own, whole = (images_of(tmp_path / f"images{n}").astype(int) for n in (size, 64))
        assert (
            np.abs(own - whole).max() <= 1
        )  # a value at the edge of two bytes may fall either way
        assert np.mean(own != whole) < 1e-3
        fid, of_whole = (records[n]["metrics"]["fid"] for n in (size, 64))
        assert fid == pytest.approx(of_whole, rel=1e-4)


def test_samples_differ_by_batches_by_rounding_alone(student: Path) -> None:
    """The pixels before they are rounded to 8 bits agree to 1e-5 whatever the batch."""
    model = load_student(student)
    labels, seeds = [i % 10 for i in range(20)], range(20)
    whole = model.sample(labels, seeds, 2, batch_size=20)
    for size in (1, 7):
        assert (model.sample(labels, seeds, 2, batch_size=size) - whole).abs().max() < 1e-5


def launch(
    student: Path, output: Path, *more: object, rank: int = 0, ranks: int = 1, port: int = 0
) -> subprocess.Popen[str]:
    """The command in a process of its own, one of ``ranks`` that meet at ``port``."""
    program = ["stepdistill.evals.evaluate_model", str(student), "--protocol", "digits"]
    program += ["--num", str(NUM), "--batch_size", "8", "--output", str(output), *map(str, more)]
    meeting = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    named = {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in meeting.items()}}
    return subprocess.Popen(
        [sys.executable, "-m", *program],
        env={**os.environ, **(named if ranks > 1 else {})},
        stderr=subprocess.PIPE,
        text=True,
    )


def shards_in(folder: Path, least: int) -> Iterator[Path]:
    """Wait until so many shards lie in the folder."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        found = list(folder.glob("*.safetensors"))
        if len(found) >= least:
            return iter(found)
        time.sleep(0.005)
    raise AssertionError(f"{folder} has no {least} shards after two minutes")


@pytest.mark.slow
def test_two_processes_and_a_kill_change_no_bit(evaluate: Evaluate, student: Path, tmp_path: Path):
    """One process, two, one killed with -9 half-way and gone on with, one asked to stop by SIGTERM:
    with the same batches the same images and the same distance, to the last bit."""
    whole = evaluate("whole", "--batch_size", 8, "--images", tmp_path / "whole")
    given, port = (student, tmp_path / "two.json", "--images", tmp_path / "two"), free_port()
    for process in [launch(*given, rank=rank, ranks=2, port=port) for rank in (0, 1)]:
        assert process.wait(300) == 0, process.stderr and process.stderr.read()
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
        output = tmp_path / f"{name}.json"
        first = launch(student, output, "--images", tmp_path / name)
        shards_in(tmp_path / f"{name}.json.parts", 2)
        os.kill(first.pid, number)
        code = first.wait(60)
        assert code == (0 if number == signal.SIGTERM else -number)
        done = len(list((tmp_path / f"{name}.json.parts").glob("*.safetensors")))
        assert 2 <= done < len(cut(NUM, 1, 8)), "it was done before the signal came"
        assert not output.exists()
        again = launch(student, output, "--images", tmp_path / name)
        assert again.wait(120) == 0
    for name in ("two", "killed", "stopped"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["metrics"] == whole["metrics"], name
        assert record["sampling"]["told_sha256"] == whole["sampling"]["told_sha256"]
        assert np.array_equal(images_of(tmp_path / name), images_of(tmp_path / "whole")), name
    assert json.loads((tmp_path / "two.json").read_text())["processes"] == 2


def test_repeats_and_the_least_of_them(evaluate: Evaluate) -> None:
    """Repeat r has the seeds that follow those of r - 1: the same as evaluations of their own."""
    three = evaluate("three", "--repeats", 3)
    alone = [evaluate(f"seed{i}", "--seed", i * NUM) for i in range(3)]
    values = [record["metrics"]["fid"] for record in alone]
    assert [one["fid"] for one in three["per_seed"]] == values
    assert [one["seed"] for one in three["per_seed"]] == [0, NUM, 2 * NUM]
    assert three["metrics"]["fid"] == values[0]
    assert "fid_min_of_3" not in three["metrics"], "this protocol's source reports no minimum"


def test_features_are_kept_on_request(evaluate: Evaluate, tmp_path: Path) -> None:
    """With --keep_features the very features of the moments lie in the folder, else nowhere."""
    evaluate("kept", "--keep_features", tmp_path / "features")
    features = load_file(tmp_path / "features" / "digits.safetensors")["features"]
    assert features.shape == (NUM, 32)
    assert torch.isfinite(features).all()
    assert not list(tmp_path.glob("**/*.parts"))


def test_samples_lie_beside_the_record(evaluate: Evaluate, tmp_path: Path) -> None:
    """The first sixteen, the same as among all images."""
    record = evaluate("beside", "--images", tmp_path / "all", "--seed", 3)
    folder = tmp_path / record["samples"]["folder"]
    assert record["samples"]["seeds"] == list(range(3, 19))
    assert np.array_equal(images_of(folder), images_of(tmp_path / "all")[:16])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--protocol", "digit"), "there is no protocol digit. Did you mean digits?"),
        (("--protocol", "coco2014-30k"), "is not told by text: coco2014-30k cannot prompt it"),
        (("--protocol", "digits", "--num", "1"), "num must be at least 2, got 1"),
        (("--protocol", "digits", "--batch_size", "0"), "batch_size must be at least 1, got 0"),
        (("--protocol", "digits", "--steps", "3"), "use one of [1, 2]"),
        (("--protocol", "digits", "--metrics", "fidd"), "no metric fidd. Did you mean fid?"),
        (("--protocol", "digits", "--guidance_scale", "3"), "trained without guidance"),
        (("--protocol", "digits", "--features", "dinov2"), "features and size are of custom"),
        (("--protocol", "digits", "--weights", "x.pt"), "weights are given as NAME=PATH"),
        (("--protocol", "digits", "--prompts", "a.txt"), "is not told by text"),
        (("--protocol", "custom"), "custom has no count of its own: give --num"),
        ((), "eval needs --protocol, one of digits,"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...],
    said: str,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sentence before anything is sampled."""
    assert run("eval", student, *arguments, "--output", tmp_path / "o.json") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
    assert not list(tmp_path.glob("*.samples"))


def test_a_model_of_another_size(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    """The protocol's images are of one size: said at the first batch, with both sizes."""
    reference = tmp_path / "reference.npz"
    np.savez(reference, mu=np.zeros(2048), sigma=np.eye(2048))
    arguments = ("--protocol", "cifar10-edm", "--num", 4, "--reference", reference)
    given = ("--weights", f"inception-tf={weights}", "--output", tmp_path / "o.json")
    assert run("eval", student, *arguments, *given) == 2
    assert "images of 32x32 pixels" in (said := capsys.readouterr().err)
    assert "samples 8x8" in said


def test_going_on_otherwise_is_refused(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A work folder of other settings is not gone on with: the sentence names what differs."""
    parts = tmp_path / "o.json.parts"
    parts.mkdir()
    (parts / "settings.json").write_text("{}")
    (parts / "begun").touch()
    fixed = ("--protocol", "digits", "--num", NUM, "--output", tmp_path / "o.json")
    assert run("eval", student, *fixed) == 2
    assert "begun otherwise (" in capsys.readouterr().err
    (parts / "settings.json").write_text("{")
    assert run("eval", student, *fixed) == 2
    assert "settings.json is damaged" in capsys.readouterr().err


def test_a_changed_scheduler_is_noticed(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the weights alone decide the samples: a config that changed after a kill is refused."""
    model, output = tmp_path / "model", tmp_path / "o.json"
    shutil.copytree(student, model)
    fixed = ("--protocol", "digits", "--num", NUM, "--output", output)
    assert run("eval", model, *fixed) == 0
    settings = json.loads(output.read_text())
    parts = tmp_path / "o.json.parts"
    parts.mkdir()
    kept = ("protocol", "repeats", "model", "sampling", "extractors", "images", "versions")
    work = {name: settings[name] for name in (*kept, "commit", "device")}
    for name in ("calls", "image_size", "seconds"):
        work["sampling"].pop(name)
    (parts / "settings.json").write_text(json.dumps(work))
    (parts / "begun").touch()
    output.unlink()
    assert run("eval", model, *fixed) == 0, "the same settings are gone on with"
    parts.mkdir()
    (parts / "settings.json").write_text(json.dumps(work))
    (parts / "begun").touch()
    output.unlink()
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("80.0", "20.0"))
    assert run("eval", model, *fixed) == 2
    assert "model.config_sha256.scheduler/scheduler_config.json" in capsys.readouterr().err


def test_a_folder_of_other_images_is_left_alone(
    evaluate: Evaluate, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images are written into an empty folder, or the record would not be of what lies there."""
    evaluate("first", "--images", tmp_path / "images")
    fixed = ("--protocol", "digits", "--num", NUM, "--output", tmp_path / "second.json")
    assert run("eval", student, *fixed, "--images", tmp_path / "images") == 2
    assert "holds something already" in capsys.readouterr().err
    assert len(list((tmp_path / "images").iterdir())) == NUM
    assert run("eval", student, *fixed, "--images", tmp_path / "another") == 0
    assert len(list((tmp_path / "another").iterdir())) == NUM


def test_the_standard_error_does_not_depend_on_the_batch(evaluate: Evaluate) -> None:
    """Sample i is of part i mod 16 of the bootstrap, however the shards are cut."""
    errors = [evaluate(str(n), "--batch_size", n)["errors"]["fid"] for n in (20, 64)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_an_old_record_stays(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that is there is not written over."""
    (tmp_path / "o.json").write_text("mine")
    fixed = ("--protocol", "digits", "--num", NUM, "--output", tmp_path / "o.json")
    assert run("eval", student, *fixed) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "o.json").read_text() == "mine"


def test_a_model_that_gives_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seeds of the batch are named, exit code 3, and nothing is written as done."""
    teacher = tiny_teacher(tmp_path / "teacher")
    with torch.no_grad():
        teacher.pipeline.unet.conv_out.bias.fill_(float("nan"))
    folder = write_student(teacher, tmp_path / "nan")
    fixed = ("--protocol", "digits", "--num", NUM, "--output", tmp_path / "o.json")
    assert run("eval", folder, *fixed) == 3
    assert "seeds 0 to 63: NaN or Inf in image 0" in capsys.readouterr().err
    assert not list((tmp_path / "o.json.parts").glob("*.safetensors"))
