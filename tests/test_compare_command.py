"""``stepdistill compare``: tiny cells on the digits, killed and gone on with, and its records."""

from __future__ import annotations

import importlib
import json
import signal
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import check_exports_here, draw_no_report, run
from safetensors.torch import load_file

from stepdistill import checkpoint
from stepdistill.cells import meter, training
from stepdistill.cells.cell import Cell
from stepdistill.cells.given import given_settings
from stepdistill.cells.table import Group, groups, markdown
from stepdistill.cells.tasks import Asked, plan
from stepdistill.cells.worlds import find_world
from stepdistill.errors import NonFiniteError
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.running.engine import Engine
from stepdistill.metrics.quality import floor
from stepdistill.presets import lengths
from stepdistill.sources import WORLDS

BUDGET, NUM = 12_000, 400
DMD2 = {"critic": 7, "generator": 7}  # calls a sample, see test_network_calls


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        draw_no_report(patch)
        yield


def compare(output: Path, *more: object, methods: tuple[str, ...] = ("dmd2",)) -> int:
    """One cell of a few iterations, unless ``more`` says otherwise."""
    small = ("--steps", 1, "--seeds", 0, "--budget", BUDGET, "--num", NUM)
    return run("compare", "--methods", *methods, "--output", output, *small, *more)


def record(output: Path, name: str = "dmd2-1-0") -> dict[str, Any]:
    return json.loads((output / "records" / f"digits-{name}.json").read_text())


def student(output: Path, name: str = "dmd2-1-0") -> Any:
    folder = output / "digits" / name / "student" / "unet"
    return load_file(next(folder.glob("*.safetensors")))


def same(a: Path, b: Path) -> bool:
    one, other = student(a), student(b)
    return all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of one seed, never interrupted."""
    output = tmp_path_factory.mktemp("two") / "out"
    assert compare(output, methods=("dmd2", "ect")) == 0
    return output


@pytest.mark.slow
def test_cells_spend_the_budget(two: Path) -> None:
    """Within one iteration of it: one more of the same length would be too much."""
    for name, most in (("dmd2-1-0", sum(DMD2.values())), ("ect-1-0", 4)):
        cell = record(two, name)["cell"]
        assert BUDGET - 128 * most < cell["calls"] <= BUDGET
    cell = record(two)["cell"]
    critic, generator = cell["iterations"], cell["iterations"] // 3
    assert cell["calls"] == 128 * (7 * critic + 7 * generator)
    assert cell["settings"]["max_steps"] == cell["iterations"] == cell["max_steps"]
    reached = checkpoint.complete(two / "digits" / "dmd2-1-0" / "checkpoints")[-1]
    assert int(reached.name) == cell["iterations"]


@pytest.mark.slow
def test_records_are_those_of_the_benchmark(two: Path, tmp_path: Path) -> None:
    """The measurement is what ``eval`` gives of the student, and the rest is recomputed."""
    own = record(two)
    asked = ("--protocol", "digits", "--num", NUM, "--batch_size", 500)
    place = two / "digits" / "dmd2-1-0" / "student"
    assert run("eval", place, *asked, "--output", tmp_path / "again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    for found in (own, again):
        found["sampling"].pop("seconds")
    for part in ("metrics", "errors", "per_seed", "sampling", "model", "notes", "reference"):
        assert again[part] == own[part], part
    bar = json.loads((WORLDS / "digits" / "teacher" / "record.json").read_text())
    cell, fid = own["cell"], own["metrics"]["fid"]
    ratio = (fid - floor(NUM)) / (bar["fid"] - bar["fid_floor"])
    assert cell["fid_ratio"] == pytest.approx(ratio)
    assert cell["bar"]["fid"] == bar["fid"]
    config = yaml.safe_load((two / "digits" / "dmd2-1-0" / "config.yaml").read_text())
    for name, value in cell["settings"].items():
        group, _, option = name.rpartition(".")
        assert (config[group] if group else config)[option] == value, name
    assert not cell["stopped"]
    assert 0 < cell["processor_seconds"] < 120
    assert 0 < cell["seconds"] < 300
    assert cell["process_peak_bytes"] > cell["update_peak_bytes"] > 10**6


@pytest.mark.slow
def test_the_benchmark_compares_them(two: Path, tmp_path: Path) -> None:
    files = sorted((two / "records").glob("*.json"))
    assert run("eval", "compare", *files, "--output", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert ">dmd2<" in page
    assert ">ect<" in page


@pytest.mark.slow
def test_the_same_command_leaves_finished_cells(two: Path, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (two / "records").glob("*.json")}
    assert len(before) == 2
    assert compare(two, methods=("dmd2", "ect")) == 0
    assert {path: path.stat().st_mtime_ns for path in (two / "records").glob("*.json")} == before
    assert "cell 1" not in capsys.readouterr().out


@pytest.mark.slow
def test_each_seed_of_training_is_measured_on_noise_of_its_own(two: Path, tmp_path: Path) -> None:
    """Seed i of training from sample i num on: no sample of one row stands in it twice."""
    assert compare(tmp_path, "--seeds", 1, methods=("ect",)) == 0
    firsts = [record(two, "ect-1-0"), record(tmp_path, "ect-1-1")]
    assert [first["sampling"]["seed"] for first in firsts] == [0, NUM]


@pytest.mark.slow
def test_a_path_is_timed_with_its_cell(tmp_path: Path) -> None:
    """The seconds are those of the training and of the recording before it."""
    budget = 128 * (4 * 100 + 3 * 7 + 7)  # the path of the preset, and one update of the generator
    assert compare(tmp_path, "--budget", budget, methods=("disback",)) == 0
    cell, run_folder = record(tmp_path, "disback-1-0")["cell"], tmp_path / "digits" / "disback-1-0"
    assert cell["iterations"] == 3
    kept = [
        json.loads((run_folder / f"{name}.json").read_text()) for name in ("times", "path_times")
    ]
    assert [own["iterations"] for own in kept] == [3, 100]
    each = [own["iterations"] / own["timed"] * own["processor"] for own in kept]
    assert cell["processor_seconds"] == pytest.approx(sum(each))
    assert each[1] > each[0]


@pytest.mark.slow
def test_another_budget_is_not_mixed_in(two: Path, capsys: Any) -> None:
    assert compare(two, "--budget", 2 * BUDGET) == 2
    said = capsys.readouterr().err
    assert "was made otherwise" in said
    assert "budget: 12000" in said


@pytest.mark.slow
def test_killed_in_training_and_in_measuring(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A signal in an iteration, then one among the samples: the third start makes the same."""
    output, called = tmp_path / "out", meter.Meter.__call__

    def killed(self: Any, iteration: int, method: Any, ema: Any) -> None:
        called(self, iteration, method, ema)
        if iteration == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(meter.Meter, "__call__", killed)
        assert compare(output) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert not list((output / "records").glob("*.json"))
    assert not (output / "digits" / "dmd2-1-0" / "student").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", lambda *_: False)
        assert compare(output) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert not list((output / "records").glob("*.json"))
    assert compare(output) == 0
    assert same(output, two)
    whole, own = record(two), record(output)
    assert own["metrics"] == whole["metrics"]
    assert own["cell"]["calls"] == whole["cell"]["calls"]
    assert not (output / "records" / "digits-dmd2-1-0.json.parts").exists()


@pytest.mark.slow
def test_a_limit_of_time(two: Path, tmp_path: Path, capsys: Any) -> None:
    """The cell is stopped after an iteration, measured, and told; without the limit it goes on to
    the student that it would have been."""
    output = tmp_path / "out"
    assert compare(output, "--minutes", 1e-4) == 0
    own = record(output)
    assert own["cell"]["stopped"]
    assert own["cell"]["iterations"] < own["cell"]["max_steps"]
    assert own["cell"]["calls"] < record(two)["cell"]["calls"]
    assert "stopped at its limit of 0.0001 processor minutes" in own["notes"][-1]
    assert "Stopped at a limit of time, before the budget: dmd2-1-0" in capsys.readouterr().out
    assert not same(output, two)
    before = (output / "records" / "digits-dmd2-1-0.json").stat().st_mtime_ns
    assert compare(output, "--minutes", 1e-4) == 0
    assert (output / "records" / "digits-dmd2-1-0.json").stat().st_mtime_ns == before
    assert compare(output) == 0
    assert not record(output)["cell"]["stopped"]
    assert record(output)["notes"] == record(two)["notes"]
    assert same(output, two)


@pytest.mark.slow
def test_a_cell_that_breaks_stops_no_other(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """NaN in one training: the others are made, and the exit code tells of it at the end."""
    output, called = tmp_path / "out", training.distil

    def broken(name: str, *given: Any) -> Any:
        if name == "dmd2":
            raise NonFiniteError("NaN in the critic's loss")
        return called(name, *given)

    monkeypatch.setattr(training, "distil", broken)
    assert compare(output, methods=("dmd2", "ect")) == 3
    said = capsys.readouterr()
    assert "not all cells could be trained: dmd2-1-0: NaN in the critic's loss" in said.err
    assert "| ect | 1 | 1 |" in said.out
    assert record(output, "ect-1-0")["metrics"] == record(two, "ect-1-0")["metrics"]


@pytest.mark.slow
def test_pairs_are_made_once_a_seed_and_counted(tmp_path: Path) -> None:
    """35 calls of the teacher a pair; another start makes no new ones."""
    output, asked = tmp_path / "out", ("--pairs", 40, "--budget", 40 * 35 + 5_000)
    assert compare(output, *asked, methods=("regression",)) == 0
    cell = record(output, "regression-1-0")["cell"]
    assert (cell["pairs"], cell["pair_calls"]) == (40, 35)
    assert cell["iterations"] == 5_000 // (3 * 128)
    assert cell["calls"] == 40 * 35 + 3 * 128 * cell["iterations"]
    index = json.loads((output / "digits" / "pairs-0" / "index.json").read_text())
    assert index["made_from"]["seed"] >= 2**40  # no seed that students are measured on


@pytest.mark.slow
def test_the_table_is_of_the_records(two: Path, tmp_path: Path) -> None:
    """Means and deviations over seeds, from records whose numbers are set here."""
    ratios, files = (1.25, 1.5, 2.5), []
    for seed, ratio in enumerate(ratios):
        own = record(two)
        own["cell"] |= {"seed": seed, "fid_ratio": ratio, "processor_seconds": 100.0 + seed}
        own["metrics"]["class_accuracy"] = 97.0 + seed
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps(own))
    ect = record(two, "ect-1-0")
    del ect["metrics"]["diversity"]  # as of one sample a prompt
    files.append(tmp_path / "ect.json")
    files[-1].write_text(json.dumps(ect))
    (found,) = groups(read_records(list(map(str, files))))
    row = next(row for row in found.json()["rows"] if row["method"] == "dmd2")
    assert row["seeds"] == [0, 1, 2]
    assert row["fid_ratio"] == {
        "mean": statistics.fmean(ratios),
        "std": pytest.approx(statistics.stdev(ratios)),
    }
    assert row["accuracy"]["mean"] == 98
    text = markdown([found])
    peak = own["cell"]["update_peak_bytes"] / 2**20
    expected = f"| dmd2 | 1 | 3 | 1.75 ± 0.66 | 98.00 ± 1.00 | {own['metrics']['diversity']:.3f} |"
    assert expected in text
    assert f"| 101 ± 1 | {peak:.0f} |" in text
    assert "400 samples a figure" in text
    assert f"| ect | 1 | 1 | {ect['cell']['fid_ratio']:,.2f} | " in text
    assert " | – | " in text
    assert text.index("| dmd2") < text.index("| ect")  # the lower ratio first


@pytest.mark.slow
def test_the_summary_is_written(two: Path) -> None:
    (group,) = json.loads((two / "table.json").read_text())
    assert [row["method"] for row in group["rows"]] != []
    for row in group["rows"]:
        own = record(two, f"{row['method']}-1-0")
        assert row["fid_ratio"] == {"mean": own["cell"]["fid_ratio"], "std": None}
        assert row["fid"]["mean"] == own["metrics"]["fid"]
        assert row["diversity"]["mean"] == own["metrics"]["diversity"]
        assert row["accuracy"]["mean"] == own["metrics"]["class_accuracy"]
        assert f"{own['cell']['fid_ratio']:,.2f}" in (two / "table.md").read_text()


GIVEN = {"method.gan_weight": 0.5, "lr_warmup": 40, "method.guidance_interval": [0.0, 0.7]}


def test_settings_stand_in_place_of_the_preset_s(tmp_path: Path) -> None:
    """As train reads them; what counts iterations grows with the budget; the record says which."""
    words = ["method.gan_weight=0.5", "lr_warmup=40", "method.guidance_interval=[0,0.7]"]
    own = Asked(("dmd2",), "digits", (1,), (0,), 2e6, tmp_path, settings=given_settings(words))
    (task,) = plan(own).tasks
    (plain,) = plan(replace(own, settings={})).tasks
    assert task.given == GIVEN
    part = task.iterations / lengths.compared("digits", "dmd2", 1)["max_steps"]
    expected = {**plain.settings, **GIVEN, "lr_warmup": round(40 * part)}
    assert task.settings == expected != plain.settings
    assert part != 1
    told, before = (Cell(own, one, 0).identity() for one in (task, plain))
    assert told["given"] == GIVEN
    assert "given" not in before


@pytest.mark.slow
def test_cells_of_other_settings_are_rows_of_their_own(two: Path, tmp_path: Path) -> None:
    """Two students that differ by a setting are no two seeds of one."""
    plain, given = record(two), record(two)
    given["cell"]["given"] = {"method.gan_weight": 0.5}
    files = [tmp_path / "plain.json", tmp_path / "given.json"]
    for file, own in zip(files, (plain, given), strict=True):
        file.write_text(json.dumps(own))
    (found,) = groups(read_records(list(map(str, files))))
    assert [row.seeds for row in found.rows] == [(0,), (0,)]
    assert "\n| dmd2, method.gan_weight 0.5 | 1 | 1 |" in markdown([found])
    assert [row["given"] for row in found.json()["rows"]] == [{}, {"method.gan_weight": 0.5}]


MISTAKES = {
    "unknown method": (("--methods", "regresion"), "no method regresion. Did you mean regression?"),
    "twice": (("--methods", "dmd2", "dmd2"), "methods names dmd2 twice"),
    "unknown teacher": (("--teacher", "digit"), "digit is none. Did you mean digits?"),
    "no steps": (("--steps", "[]"), "steps is empty"),
    "zero steps": (("--steps", "0"), "steps must be at least 1, got 0"),
    "no budget": (("--budget", "0"), "budget must be a number of network calls above 0"),
    "no methods": (("--methods", "[]"), "methods is empty: name at least one"),
    "one sample": (("--num", "1"), "num must be at least 2, got 1"),
    "no time": (("--minutes", "0"), "minutes must be above 0"),
    "seed": (("--seeds", "-1"), "seed must lie in 0 to"),
    "one step alone": (
        ("--methods", "regression", "--steps", "4"),
        "regression trains one step, and the plan has 4",
    ),
    "small budget": (("--budget", "3000"), "is too small for dmd2 in 1 step: a generator update"),
    "no value": (("--settings", "method.gan_weight"), "settings are given as NAME=VALUE"),
    "a setting twice": (
        ("--settings", "lr_warmup=1", "lr_warmup=2"),
        "settings name lr_warmup twice",
    ),
    "a comparison's own": (("--settings", "max_steps=9"), "max_steps is set by the comparison"),
    "unknown setting": (
        ("--settings", "method.gan_wait=1"),
        "there is no option --method.gan_wait. Did you mean --method.gan_weight?",
    ),
    "no number": (
        ("--settings", "method.gan_weight=much"),
        "--method.gan_weight must be a number, got much",
    ),
    "pairs": (
        ("--methods", "regression", "--budget", "1000"),
        "beside 175,000 for its 5,000 pairs",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path, capsys: Any) -> None:
    """One sentence, and nothing is written."""
    given, expected = MISTAKES[name]
    defaults = {"--methods": ("dmd2",), "--steps": (1,), "--budget": (BUDGET,)}
    defaults.pop(given[0], None)
    rest = [word for option, values in defaults.items() for word in (option, *values)]
    assert run("compare", *rest, *given, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_method_without_a_preset(tmp_path: Path, capsys: Any) -> None:
    missing = ("--methods", "ect", "--teacher", "digits-flow", "--budget", BUDGET)
    assert run("compare", *missing, "--output", tmp_path / "out") == 2
    assert "there are no settings for ect on digits-flow" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").write_text("mine")
    assert compare(tmp_path / "out") == 2
    assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.slow
def test_a_dry_run_lists_and_leaves(tmp_path: Path, capsys: Any) -> None:
    """A number of steps that a method cannot train is left out, and said."""
    more = ("--budget", 1e6, "--dry_run")
    given = ("--methods", "dmd2", "regression", "--output", tmp_path / "out")
    assert run("compare", *given, *more) == 0
    said = capsys.readouterr().out
    assert "cells: 9, of seeds 0, 1, 2 each" in said
    assert "left out, regression in 4 steps: regression trains one step" in said
    assert not (tmp_path / "out").exists()


def test_settings_are_of_the_run_s_length(tmp_path: Path) -> None:
    """What counts iterations keeps its part of the whole, what counts none stays."""
    preset = lengths.compared("digits", "dmd2", 1)
    asked = Asked(("dmd2",), "digits", (1,), (0,), 2e6, tmp_path)
    (task,) = plan(asked).tasks
    part = task.iterations / preset["max_steps"]
    assert part > 1.5
    for name, value in task.settings.items():
        counted = name in ("max_steps", "lr_warmup", "lr_decay")
        expected = pytest.approx(part * preset[name], abs=0.5) if counted else preset[name]
        assert value == expected, name
    assert task.settings["evaluate_every"] == task.settings["sample_every"] == 0


def test_the_meter_counts_a_start_s_first_iteration_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two starts of 3 and 2 iterations, of 1 s by the clock and 2 s of the processor each."""
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(meter.time, "process_time", lambda: 2 * now[0])
    for iterations in ((1, 2, 3), (4, 5)):
        own = meter.Meter(tmp_path / "times.json", 1, None)
        now[0] += 50  # loading, and a slow first iteration
        for iteration in iterations:
            own(iteration, None, None)  # type: ignore[arg-type]
            now[0] += 1
    assert own.spent() == (5.0, 10.0)


def test_the_bar_is_as_quickstart_takes_it() -> None:
    """At the bundled count the floors are the same, whether bundled or measured."""
    world = find_world("digits")
    quickstart = importlib.import_module("stepdistill.trainers.quickstart").teacher_record()
    assert {k: v for k, v in world.bar().items() if k in quickstart} == {
        k: quickstart[k] for k in world.bar() if k in quickstart
    }
    assert world.floor_at(world.bar()["num_samples"]) == pytest.approx(floor(50_000), rel=1e-3)


def test_a_guided_teacher_stands_in_the_table_unguided_too() -> None:
    """By what is bundled with it: (1.078 - 0.094) / (0.518 - 0.040), each above its own floor."""
    made = {
        name: Group(name, 1e5, 10, find_world(name).bar(), accuracy, (), ())
        for name, accuracy in (("digits", "class_accuracy"), ("digits-flow", "caption_accuracy"))
    }
    shown = markdown([made["digits-flow"]])
    assert "| teacher, unguided | 20 | 1 | 2.06 | 58.50 | 1.499 |" in shown
    assert "The unguided teacher's figures are of 2,000 samples." in shown
    assert "unguided" not in markdown([made["digits"]])
