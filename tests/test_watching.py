"""What measurements decide: the best checkpoint, the alarm, the end; and that all ranks agree.

Stubs whose metric is a known function of the generator's averaged weight, which falls evenly.
"""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from run_tiny import (
    Stub,
    digest,
    free_port,
    go,
    history,
    launch,
    numbers,
    same,
    saved,
    state,
    stderr_of,
)

from stepdistill import checkpoint
from stepdistill.errors import NonFiniteError, UserError
from stepdistill.fit import FitResult
from stepdistill.fit_config import FitConfig
from stepdistill.report import render
from stepdistill.runs import read_metrics
from stepdistill.watching import crossed, remarks, score, stalled

INF = math.inf


# --- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "margin", "since"),
    [
        ([], 0.0, 0),
        ([5.0], 0.0, 0),
        ([5.0, 5.0, 4.0], 0.0, 0),
        ([5.0, 4.0, 4.0, 6.0], 0.0, 2),
        ([5.0, 1.0, 2.0, 1.5, 1.2], 0.0, 3),  # each below the one before, none below the best
        ([10.0, 9.5, 9.2, 8.9], 0.1, 0),  # 3 steps below the margin, that add up to more
        ([10.0, 9.5, 9.2, 9.0], 0.1, 3),
        ([-0.5, -0.6, -0.62], 0.1, 1),  # higher is better: 0.5, 0.6, 0.62
        ([0.0, 0.0, -1.0], 0.5, 0),
        ([5.0, math.nan, 4.0], 0.0, 0),
        ([5.0, math.nan, INF], 0.0, 2),
    ],
)
def test_measurements_without_improvement(scores: list[float], margin: float, since: int) -> None:
    """Counted from the last one that beat the last improvement by more than the margin."""
    assert stalled(scores, margin) == since


def test_which_way_is_better() -> None:
    """Distances fall, accuracies and scores rise, diversity nears 1; a distance decides by
    default."""
    metrics = {"class_accuracy": 90.0, "fid": 3.0, "teacher_distance": 2.0, "diversity": 0.7}
    assert score(metrics, None) == 3.0
    assert score({k: v for k, v in metrics.items() if k != "fid"}, None) == 2.0
    assert score(metrics, "class_accuracy") == -90.0
    assert score(metrics, "diversity") == pytest.approx(0.3)
    assert score({"diversity": 1.2}, "diversity") == pytest.approx(0.2)
    assert score({"teacher_kid": -0.1, "teacher_recall": 0.5}, "teacher_recall") == -0.5
    assert score({"hpsv2": 0.2, "teacher_recall": 0.5}, None) is None
    assert score({"teacher_kid": -0.1, "teacher_recall": 0.5}, None) == -0.1
    assert score({"clip_score": 30.0, "cmmd": 1.0}, "cmmd") == 1.0
    assert score({"clip_score": 30.0}, None) is None


@pytest.mark.parametrize(
    ("values", "alarm"),
    [
        ([0.4], True),
        ([0.5], False),
        ([0.9, 0.4], True),
        ([0.9, 0.4, 0.3], False),
        ([0.4, 0.6, 0.4], True),
        ([None, 0.4], True),
        ([0.4, None], False),
        ([0.4, math.nan], False),
    ],
)
def test_an_alarm_is_told_once_a_crossing(values: list[float | None], alarm: bool) -> None:
    assert crossed(values, 0.5) is alarm


# --- runs --------------------------------------------------------------------------------------


def falling(folder: Path, stop_at: int | None = None, **settings: Any) -> FitResult:
    """A run measured every second iteration by how far the average is from that of iteration 7,
    with a diversity that falls with it. With ``stop_at`` it gets SIGTERM there."""
    method = Stub(critic=False)
    weight = method.roles["generator"].module.weight
    proper, first = method.generator_loss, weight.item()

    def generator_loss(batch: Any) -> Any:
        if batch.draws.iteration == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return proper(batch)

    def evaluate() -> dict[str, float]:
        gone = first - weight.item()
        return {"fid": abs(gone - 0.055), "diversity": 1 - 10 * gone}

    method.generator_loss = generator_loss  # type: ignore[method-assign]
    given = {"evaluate_every": 2, "evaluate": evaluate, "ema_half_life": 0.0, "lr_warmup": 0}
    return go(method, numbers(), folder, **{"keep": 1, **given, **settings})


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    import torch

    torch.manual_seed(0)


def test_a_run_ends_where_it_no_longer_improves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best at 6 of 2, 4, ...: two measurements more, a checkpoint there, and the reason; the best
    outlives them. The same command again says that it is done, and changes nothing."""
    result = falling(tmp_path, stop_after=2)
    why = "stopped at iteration 10 of 20: 2 measurements in a row did not lower fid"
    assert (result.iteration, result.interrupted, result.stopped) == (10, False, why)
    assert saved(tmp_path) == ["000006", "000010"]
    assert checkpoint.best(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "000006"
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert {"iteration": 10, "stopped": why} in lines
    assert remarks(lines)[-1] == "S" + why[1:] + "."
    files = digest(tmp_path)
    capsys.readouterr()
    again = falling(tmp_path, stop_after=2)
    assert (again.iteration, again.stopped) == (10, why)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"{tmp_path} is done: it {why}; raise stop_after")
    assert digest(tmp_path) == files
    longer = falling(tmp_path, stop_after=4)
    assert (longer.iteration, longer.stopped[:24]) == (14, "stopped at iteration 14 ")
    assert falling(tmp_path).iteration == 20
    assert not any("topped" in text for text in remarks(read_metrics(tmp_path / "metrics.jsonl")))


@pytest.mark.parametrize("stop_at", [1, 6, 7, 9])
def test_resumed_runs_stop_where_straight_ones_do(tmp_path: Path, stop_at: int) -> None:
    """Interrupted at any place: the same end, weights, lines and checkpoints, to the last bit."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    import torch

    falling(straight, stop_after=2)
    torch.manual_seed(0)
    assert falling(resumed, stop_at, stop_after=2).iteration == stop_at
    torch.manual_seed(0)
    assert falling(resumed, stop_after=2).iteration == 10
    assert same(state(straight), state(resumed))
    assert history(straight) == history(resumed)
    assert saved(straight) == saved(resumed)


def test_the_end_of_a_run_is_no_early_end(tmp_path: Path) -> None:
    """Where the last iteration comes first, nothing has stopped the run."""
    assert falling(tmp_path, stop_after=2, max_steps=10).stopped == ""


def test_a_higher_metric_may_decide(tmp_path: Path) -> None:
    """The checkpoint of the most diverse student is the first, and a resume by another is
    refused."""
    falling(tmp_path, max_steps=8, best_metric="diversity")
    assert saved(tmp_path) == ["000002", "000008"]
    with pytest.raises(UserError, match="best_metric: 'diversity' there"):
        falling(tmp_path, max_steps=10)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("diversity", "bring diversity nearer to 1"),
        ("recall", "raise recall"),
        ("kid", "lower kid"),
    ],
)
def test_the_end_says_which_way_is_better(tmp_path: Path, name: str, says: str) -> None:
    """A metric that gets worse, each in its own way, ends the run at its second measurement."""
    worse = iter([0.5, 0.6, 0.7] if name == "kid" else [0.5, 0.4, 0.3])
    given = {"evaluate": lambda: {name: next(worse)}, "diversity_alarm": 0.0}
    result = falling(tmp_path, stop_after=1, best_metric=name, **given)
    assert result.iteration == 4
    assert result.stopped.endswith(f"1 measurements in a row did not {says}")


def test_the_alarm_is_said_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Diversity 1 - 0.1 i falls through 0.5 between 4 and 6: one sentence, one mark, no stop."""
    assert falling(tmp_path, max_steps=12).iteration == 12
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["iteration"] for line in lines if "eval/diversity_alarm" in line] == [6]
    said = [line for line in capsys.readouterr().err.splitlines() if "diversity" in line]
    assert len(said) == 1
    assert said[0].startswith("iteration 6: diversity is 0.4, below diversity_alarm=0.5")
    assert remarks(lines) == [
        "Diversity alarm at iteration 6: 0.4 (1 is as diverse as what it is compared with)."
    ]
    falling(tmp_path / "off", max_steps=8, diversity_alarm=0.0)
    assert "diversity" not in capsys.readouterr().err


def test_the_page_tells_of_both(tmp_path: Path) -> None:
    """The alarm and the early end stand above the curves; how long measuring took is no curve."""
    falling(tmp_path, stop_after=2)
    page = render(tmp_path)
    assert "Diversity alarm at iteration 6: 0.4" in page
    assert "Stopped at iteration 10 of 20: 2 measurements in a row did not lower fid." in page
    assert "seconds" not in page


def test_mistakes(tmp_path: Path) -> None:
    """Said before a folder is made where they can be; a NaN never decides when to stop."""
    for name, value in (("stop_after", 2), ("best_metric", "fid")):
        with pytest.raises(UserError, match=f"{name} goes by measurements: give evaluate_every"):
            falling(tmp_path / "run", evaluate_every=0, **{name: value})
    with pytest.raises(UserError, match="evaluate_every=2 has nothing to measure"):
        falling(tmp_path / "run", evaluate=None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="best_metric=kid is not measured: there is fid, diver"):
        falling(tmp_path / "other", best_metric="kid")
    with pytest.raises(UserError, match=r"best_metric=lpips cannot decide.*: set it to kid$"):
        falling(tmp_path / "lpips", best_metric="lpips", evaluate=lambda: {"kid": 1.0, "lpips": 1})
    with pytest.raises(UserError, match="stop_after needs a metric to go by"):
        falling(tmp_path / "none", stop_after=1, evaluate=lambda: {"lpips": 1.0})
    with pytest.raises(NonFiniteError, match="iteration 2 is NaN or Inf"):
        falling(tmp_path / "nan", stop_after=1, evaluate=lambda: {"fid": math.nan})
    assert saved(tmp_path / "nan") == []


def test_old_checkpoints_can_be_gone_on_with() -> None:
    """What is compared on resume has no new key unless the new option is given."""
    assert "best_metric" not in FitConfig().trajectory()
    assert FitConfig(best_metric="fid").trajectory()["best_metric"] == "fid"
    assert not {"stop_after", "stop_margin", "diversity_alarm"} & FitConfig().trajectory().keys()


def one_rank(folder: Path, rank: int) -> None:
    """A run whose ranks measure different numbers: only the main process's get worse."""
    found = iter([5.0, 4.0, 4.5, 4.6] if rank == 0 else [4.0, 3.0, 2.0, 1.0])
    result = go(
        Stub(critic=False),
        numbers(),
        folder,
        evaluate=lambda: {"fid": next(found)},
        evaluate_every=2,
        stop_after=2,
        max_steps=12,
    )
    (folder / f"rank{rank}").write_text(f"{result.iteration} {result.metrics} {result.stopped}")


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path: Path) -> None:
    """Where ranks measure differently, in a last bit or wildly, the main process's numbers count
    on all, so that none waits for another for ever."""
    folder, port = tmp_path / "run", free_port()
    ranks = [launch(one_rank, (folder, r), folder, r, 2, port) for r in (0, 1)]
    for process in ranks:
        process.join(100)
    assert [p.exitcode for p in ranks] == [0, 0], stderr_of(folder) + stderr_of(folder, 1)
    told = [(folder / f"rank{r}").read_text() for r in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("8 {'fid': 4.6} stopped at iteration 8 of 12: 2 measurements")
