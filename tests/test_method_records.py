"""What the programs count that record how methods compare: modes kept, what was forgotten."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.export import export
from stepdistill.metrics.quality import digits_reference
from stepdistill.plans import StepPlan
from stepdistill.presets import lengths
from stepdistill.teachers import load_teacher

modes = importlib.import_module("stepdistill.evals.mode_coverage")
forgetting = importlib.import_module("stepdistill.evals.forgetting_record")
cost = importlib.import_module("stepdistill.evals.step_cost")


def test_modes_are_counted_by_the_samples_near_them() -> None:
    """Two of three modes kept, one sample in five lost: entropy of 3/4 and 1/4 of those near."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near, far = 0.9 * modes.NEAR, 1.1 * modes.NEAR
    samples = torch.tensor([[near, 0.0]] * 3 + [[10.0, near]] + [[far, 0.0]])
    share = modes.shares(samples, centres)
    assert share.tolist() == pytest.approx([0.6, 0.2, 0.0])
    found = modes.counted(share, kept=0.2)
    assert found["kept"] == 2
    assert found["near"] == pytest.approx(0.8)
    assert found["effective"] == pytest.approx(4 / 3**0.75)
    assert modes.counted(torch.full((8,), 0.125), 0.02)["effective"] == pytest.approx(8)


@pytest.mark.slow
def test_each_divergence_trains_and_draws(tmp_path: Path) -> None:
    """A record and a plot of a few iterations; the seeds make the runs."""
    output = tmp_path / "modes.json"
    options = ["--seeds=2", "--max_steps=4", "--divergences", "reverse_kl", "forward_kl"]
    modes.main([f"--output={output}", *options])
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert '"forward_kl"' in output.read_text()


def test_the_distance_of_the_others_is_to_real_images_of_them() -> None:
    """Real images of nine digits are at 0 from themselves, and farther from all ten."""
    _, reference = digits_reference()
    others = reference.features[reference.labels != 3]
    assert forgetting.distance(others, others) == pytest.approx(0, abs=1e-9)
    assert forgetting.distance(others, reference.features) > 1e-3


@pytest.mark.slow
def test_a_student_that_forgot_nothing_makes_what_it_is_asked(tmp_path: Path) -> None:
    """The teacher's own weights as a student of two steps: some requests of 3 show a 3, and the
    counts of what is made add up."""
    teacher, folder = load_teacher("digits"), tmp_path / "run" / "student"
    export(teacher.student(), teacher, StepPlan.uniform(2), folder, {"method": "none"})
    options = forgetting.Options(3, str(folder), (), str(tmp_path / "r.json"), asked=40, others=90)
    with pytest.raises(UserError, match="lies in no run"):
        forgetting.override_of(folder)
    (folder.parent / "config.yaml").write_text("method: {override: ['8']}")
    row = forgetting.measured(folder, options)
    assert sum(row["made_instead"]) == 40
    assert row["generated"] == pytest.approx(100 * row["made_instead"][3] / 40)
    assert row["nfe"] == 2
    assert row["override"] == ["8"]
    assert math.isfinite(row["fid_others"])


def test_a_record_goes_on_with_the_same_question_alone(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    asked = {"forget": 3, "asked": 40, "others": 90}
    options = forgetting.Options(plain="a", students=(), output=str(output), **asked)
    assert forgetting.rows_so_far(output, options) == []
    output.write_text(json.dumps({**asked, "students": [{"run": "a"}]}))
    assert forgetting.rows_so_far(output, options) == [{"run": "a"}]
    with pytest.raises(UserError, match=r"is of forget=3, and this is of 5"):
        forgetting.rows_so_far(output, replace(options, forget=5))


def test_a_digit_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="forget must be a digit, got 12"):
        forgetting.main(["--forget=12", "--plain=a", "--students", "b", f"--output={tmp_path}/r"])


@pytest.mark.slow
def test_the_cost_of_a_method_beside_itself_is_1(tmp_path: Path) -> None:
    """Within the noise of few pairs on a machine that others use too."""
    output = tmp_path / "cost.json"
    cost.main([f"--output={output}", "--method=dmd2", "--batch_size=16", "--pairs=6"])
    record = json.loads(output.read_text())
    assert 0.5 < record["ratio"] < 2
    assert record["pairs"] == 6


CELLS = sorted((Path(__file__).parents[1] / "evals" / "records" / "methods").glob("*.json"))


@pytest.mark.parametrize("file", CELLS, ids=[file.stem for file in CELLS])
def test_a_recorded_cell_is_of_todays_presets(file: Path) -> None:
    """What docs/methods.md shows is what the same command trains now, to the last setting."""
    cell = json.loads(file.read_text())["cell"]
    preset = lengths.compared(cell["teacher"], cell["method"], cell["steps"])
    now = lengths.scaled({**preset, **cell.get("given", {})}, cell["max_steps"])
    assert json.loads(json.dumps(now)) == cell["settings"]
