"""Stage lists: what they say, what is refused, and that they are the runs one would do by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run
from run_tiny import digest, same, state

from stepdistill.distil import stages
from stepdistill.distil.options import DistilOptions
from stepdistill.distil.stages import FINISHED, Stage, read_stages
from stepdistill.fit import FitConfig
from stepdistill.methods import DMD2Config, FDistillConfig
from stepdistill.runs import RunFolder

pytestmark = pytest.mark.usefixtures("quick_runs")


def written(place: Path, listed: Any, **shared: Any) -> Path:
    """A file of stages."""
    file = place / "stages.yaml"
    file.write_text(yaml.safe_dump({**shared, "stages": listed}))
    return file


def listed(place: Path, stages: Any, *beside: object, **shared: Any) -> list[Stage]:
    """Stages of any teacher, which is not looked for."""
    file = written(place, stages, **{"teacher": "nobody/nothing", **shared})
    return read_stages(["--config", str(file), "--output=out", *map(str, beside)])


def options(stage: Stage) -> DistilOptions:
    return stage.settings.get(DistilOptions)


# --- what a list says ---------------------------------------------------------------------------


def test_a_stages_own_options_win_over_shared_ones_and_those_given_beside_over_both(
    tmp_path: Path,
) -> None:
    """Groups are merged member by member; each stage has a folder of its own."""
    first, second = listed(
        tmp_path,
        [
            {"train": "dmd2", "max_steps": 30, "method": {"gan_weight": 0}},
            {"train": "fdiv", "method": {"bins": 3, "generator_lr": 1e-7}, "lr_warmup": 4},
        ],
        "--lr_warmup",
        5,
        "--method.critic_steps=2",
        max_steps=20,
        batch_size=16,
        betas=[0.0, 0.99],
        method={"generator_lr": 1e-5, "t_min": 0.1},
        load={"dtype": "bfloat16"},
        validation_prompts=["a, b", "null"],
    )
    one, two = first.settings.get(DMD2Config), second.settings.get(FDistillConfig)
    loops = [stage.settings.get(FitConfig) for stage in (first, second)]
    assert [loop.max_steps for loop in loops] == [30, 20]
    assert [loop.lr_warmup for loop in loops] == [5, 5]
    assert [loop.betas for loop in loops] == [(0.0, 0.99)] * 2
    assert (one.generator_lr, one.gan_weight, one.t_min, one.critic_steps) == (1e-5, 0, 0.1, 2)
    assert (two.generator_lr, two.bins, two.t_min, two.critic_steps) == (1e-7, 3, 0.1, 2)
    assert options(second).validation_prompts == ("a, b", "null")
    assert second.settings.resolved["load"]["dtype"] == "bfloat16"
    assert [str(stage.folder) for stage in (first, second)] == ["out/1-dmd2", "out/2-fdiv"]


@pytest.mark.parametrize(
    ("before", "after", "critic"),
    [
        ({"train": "dmd2"}, {"train": "fdiv"}, True),
        ({"train": "dmd2"}, {"train": "sid"}, True),
        ({"train": "ladd"}, {"train": "ladd"}, True),
        ({"train": "ladd"}, {"train": "dmd2"}, False),
        ({"train": "regression"}, {"train": "dmd2"}, False),
        ({"train": "dmd2"}, {"train": "ect"}, False),
        ({"train": "dmd2"}, {"train": "vsd"}, False),
        ({"train": "vsd"}, {"train": "vsd", "method": {"critic_alpha": 7.0}}, False),
        ({"train": "dmd2"}, {"train": "vsd", "method": {"critic_rank": 0}}, True),
        ({"train": "dmd2"}, {"train": "disback"}, False),
        ({"train": "disback"}, {"train": "dmd2"}, True),
    ],
)
def test_a_stage_starts_from_the_one_before(
    before: dict[str, Any], after: dict[str, Any], critic: bool, tmp_path: Path
) -> None:
    """Its student, and its critic where one of the same kind goes on learning."""
    first, second = listed(tmp_path, [before, after], init="mine", init_critic="its")
    assert (options(first).init, options(first).init_critic) == ("mine", "its")
    origin = str(first.folder)
    assert options(second).init == origin
    assert options(second).init_critic == (origin if critic else "")


def test_a_stage_may_start_elsewhere(tmp_path: Path) -> None:
    """From another student, or from the teacher with a new critic."""
    own = {"train": "dmd2", "init": "elsewhere", "init_critic": None}
    _, second, third = listed(
        tmp_path, [{"train": "dmd2"}, own, {"train": "dmd2", "init": ""}], "--init=mine"
    )
    assert (options(second).init, options(second).init_critic) == ("elsewhere", "")
    assert (options(third).init, options(third).init_critic) == ("", str(second.folder))


def test_only_the_last_student_is_pushed_and_a_dry_run_follows_dry_runs(tmp_path: Path) -> None:
    """The others are on the way."""
    plain = [{"train": "dmd2"}] * 3
    names = [options(stage).push_to_hub for stage in listed(tmp_path, plain, "--push_to_hub=a/b")]
    assert names == ["", "", "a/b"]
    _, second, _ = listed(tmp_path, plain, "--dry_run")
    assert options(second).init == "out/1-dmd2/dry_run"


# --- what is refused ----------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2; the sentence."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_mistakes_are_named_before_anything_begins(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their stage, and the nearest right word; no folder is made."""
    good, output = {"train": "dmd2", "method": {"gan_weight": 0}}, tmp_path / "out"
    for wrong, words in (
        ({"method": {"gan_weight": 0}}, ("stage 2 of", "needs train, a method", "fdiv")),
        ({"train": "dmd3"}, ("stage 2 (dmd3) of", "no method dmd3. Did you mean dmd")),
        ({**good, "max_step": 3}, ("stage 2 (dmd2) of", "Did you mean --max_steps?")),
        (
            {"train": "fdiv", "method": {"bin": 3}},
            ("stage 2 (fdiv) of", "no option --method.bin.", "Did you mean --method.bins?"),
        ),
        ({**good, "max_steps": "many"}, ("stage 2 (dmd2)", "max_steps must be a whole number")),
        ({**good, "times": [0.5, 0.9]}, ("stage 2 (dmd2)", "step times must fall")),
        ({"train": "regression", "steps": 4}, ("stage 2 (regression)", "the plan has 4")),
        ({**good, "data": "nowhere"}, ("stage 2 (dmd2)", "there is no folder nowhere")),
        ({**good, "export": "lora"}, ("stage 2 (dmd2)", "export=lora needs LoRA roles")),
        ({**good, "export_best": True}, ("stage 2 (dmd2)", "give evaluate_every too")),
        ({**good, "lora": {"rank": 2}}, ("stage 2 (dmd2)", "a LoRA starts from a LoRA")),
    ):
        file = written(tmp_path, [good, wrong], teacher=str(teacher), data="digits")
        said = refused(capsys, "train", "stages", "--config", file, "--output", output)
        for word in words:
            assert word in said, said
        assert not output.exists()
    lora = {**good, "lora": {"rank": 2, "targets": ["time_emb_proj"]}, "export": "lora"}
    file = written(tmp_path, [lora, good], teacher=str(teacher))
    assert "export=both" in refused(capsys, "train", "stages", "--config", file, "--output=x")


def test_a_file_that_is_no_list_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, twice, without stages, with stages that are none."""
    file = tmp_path / "stages.yaml"
    start = ["train", "stages", "--output", tmp_path / "out"]
    assert "needs --config once" in refused(capsys, *start)
    assert "needs --config once" in refused(capsys, *start, "--config=a", "--config=b")
    assert "cannot read the config file" in refused(capsys, *start, "--config", file)
    for text in ("teacher: digits", "stages: []", "stages: {train: dmd2}", "stages: [dmd2]"):
        file.write_text(text)
        assert "needs stages, a list with" in refused(capsys, *start, "--config", file)
    file.write_text("stages: [{train: dmd2}]\nteacher: digits")
    said = refused(capsys, "train", "stages", "--config", file)
    assert "stepdistill train stages needs --output" in said
    assert "Did you mean stages?" in refused(capsys, "train", "stage")


def test_help_tells_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """``train --help`` names the program, and its own shows a list."""
    assert run("train", "--help") == 0
    assert "train stages --config FILE" in capsys.readouterr().out
    assert run("train", "stages", "--help") == 0
    assert "stages:\n      - train: dmd2" in capsys.readouterr().out


# --- runs ---------------------------------------------------------------------------------------

SHARED: dict[str, Any] = {"data": "digits", "batch_size": 8, "shards": 4, "log_every": 1}
WITHOUT = {"train": "dmd2", "max_steps": 3, "method": {"gan_weight": 0, "generator_lr": 1e-3}}
WITH = {"train": "dmd2", "max_steps": 4, "save_every": 2, "method": {"gan_weight": 0.1}}
THEN = {"train": "fdiv", "max_steps": 2, "method": {"generator_lr": 1e-4}}


def weights(student: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in student.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_list_is_the_same_runs_done_by_hand(teacher: Path, tmp_path: Path) -> None:
    """To the last bit: weights, averages and moments of every stage, and the students."""
    common = {**SHARED, "teacher": str(teacher), "method": {"critic_steps": 2}}
    file = written(tmp_path, [WITHOUT, WITH, THEN], **common)
    output = tmp_path / "out"
    assert run("train", "stages", "--config", file, "--output", output) == 0
    by_hand: list[Path] = []
    for number, stage in enumerate((WITHOUT, WITH, THEN)):
        own = {**common, **stage, "method": {**common["method"], **stage["method"]}}
        name = own.pop("train")
        (tmp_path / "one.yaml").write_text(yaml.safe_dump(own))
        more = [f"--{key}={by_hand[-1]}" for key in ("init", "init_critic")] if number else []
        folder = tmp_path / f"hand{number}"
        given = ["--config", tmp_path / "one.yaml", "--output", folder, *more]
        assert run("train", name, *given) == 0
        by_hand.append(folder)
    folders = [output / name for name in ("1-dmd2", "2-dmd2", "3-fdiv")]
    for a, b in zip(folders, by_hand, strict=True):
        assert same(state(a), state(b))
        assert weights(a / "student") == weights(b / "student") != {}
    assert (output / "student").is_symlink()
    assert weights(output / "student") == weights(by_hand[-1] / "student")
    assert not same(state(folders[0]), state(folders[1]))
    assert not (output / "lora").exists()


class Killed(BaseException):
    """What a kill leaves on the disk, without one."""


@pytest.mark.slow
def test_killed_and_gone_on_with_is_the_straight_list(teacher: Path, tmp_path: Path) -> None:
    """Within a stage, and between a student and the note that its stage is finished.

    A finished stage is left as it is, to the last byte.
    """
    stages_ = [WITHOUT, WITH]
    file = written(tmp_path, stages_, teacher=str(teacher), **SHARED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["train", "stages", "--config", file, "--output"]
    assert run(*command, whole) == 0
    finish, log = Stage.finish, RunFolder.log

    def die_before_finish(stage: Stage) -> None:
        raise Killed

    def die_in_the_second(folder: RunFolder, record: dict[str, Any]) -> None:
        log(folder, record)
        if folder.path.name == "2-dmd2" and record["iteration"] == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "finish", die_before_finish)
        with pytest.raises(Killed):
            run(*command, killed)
    assert (killed / "1-dmd2/student").exists()
    assert not (killed / "1-dmd2" / FINISHED).exists()
    assert not (killed / "2-dmd2").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", die_in_the_second)
        with pytest.raises(Killed):
            run(*command, killed)
    before = digest(killed / "1-dmd2")
    assert FINISHED in before
    assert not (killed / "student").exists()
    assert run(*command, killed) == 0
    assert digest(killed / "1-dmd2") == before
    for name in ("1-dmd2", "2-dmd2"):
        assert same(state(killed / name), state(whole / name))
    assert weights(killed / "student") == weights(whole / "student")
    assert Stage.finish is finish


@pytest.mark.slow
def test_what_is_finished_is_not_asked_for_anew(
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same list does nothing; another one is refused, but for what changes no student; what is
    no link is not replaced; an interrupted stage ends the list."""
    file = written(tmp_path, [WITHOUT, THEN], teacher=str(teacher), **SHARED)
    output = tmp_path / "out"
    command = ["train", "stages", "--config", file, "--output", output]
    interrupted = type("Result", (), {"interrupted": True})
    with pytest.MonkeyPatch.context() as patch:
        began: list[str] = []
        patch.setattr(stages, "distil", lambda name, _: began.append(name) or interrupted)
        assert run(*command) == 0
        assert began == ["dmd2"]
    assert not output.exists()
    assert run(*command) == 0
    before = digest(output)
    assert run(*command, "--log_every=7") == 0
    assert digest(output) == before
    said = refused(capsys, *command, "--batch_size=12")
    assert "stage 1 (dmd2) is finished" in said
    assert "batch_size: 8 there, 12 now" in said
    (output / "student").unlink()
    (output / "student").mkdir()
    assert "is in the way" in refused(capsys, *command)


@pytest.mark.slow
def test_a_list_runs_dry(teacher: Path, tmp_path: Path) -> None:
    """One iteration of each stage, the second from the first's; nothing is finished by it."""
    file = written(tmp_path, [WITHOUT, WITH], teacher=str(teacher), **SHARED)
    output = tmp_path / "out"
    assert run("train", "stages", "--config", file, "--output", output, "--dry_run") == 0
    for name in ("1-dmd2", "2-dmd2"):
        card = json.loads((output / name / "dry_run/student/stepdistill.json").read_text())
        assert card["iteration"] == 1
        assert not (output / name / FINISHED).exists()
    assert not (output / "student").exists()
