"""The run folder and its checkpoints: one process, whole files, the same run after any stop."""

import errno
import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from run_tiny import (
    Stub,
    Tiny,
    build,
    digest,
    go,
    history,
    numbers,
    run,
    same,
    saved,
    start,
    state,
    stderr_of,
    wait_for_line,
)

from stepdistill import checkpoint
from stepdistill.errors import StepDistillError, UserError
from stepdistill.runs import RunFolder, read_metrics

DMD = Tiny(critic_steps=3)
ECT = Tiny(method="ect")


# --- the run folder ---------------------------------------------------------------------------


def test_one_process_a_folder(tmp_path):
    """A held folder is refused with a sentence, in the same process too; then it is free."""
    with RunFolder(tmp_path), pytest.raises(UserError, match="in use by another process") as caught:
        go(Stub(), numbers(), tmp_path)
    assert caught.value.exit_code == 2
    go(Stub(), numbers(), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    """A file in its place, or a lock that is a folder: the user's mistake, named."""
    (tmp_path / "file").write_text("")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    for name in ("file", "locked"):
        with pytest.raises(UserError, match=f"cannot make the run folder .*{name}"):
            go(Stub(), numbers(), tmp_path / name)


def test_a_folder_the_caller_holds(tmp_path):
    """``fit`` takes a RunFolder entered or not, and leaves the caller's lock to the caller."""
    folder = RunFolder(tmp_path / "a")
    with folder:
        go(Stub(), numbers(), folder)
        assert folder.held
    go(Stub(), numbers(), RunFolder(tmp_path / "b"))
    assert saved(tmp_path / "b") == ["000020"]


@pytest.mark.slow
def test_another_process_is_refused_until_it_dies(tmp_path):
    """A live process keeps its folder, one killed with -9 does not."""
    folder = tmp_path / "run"
    process = start(Tiny(fit={"max_steps": 10_000}), folder)
    wait_for_line(process, folder, 1)
    with pytest.raises(UserError, match="in use by another process"):
        run(Tiny(), folder)
    process.kill()
    process.join()
    run(Tiny(fit={"max_steps": 3}), folder)


def test_forked_children_do_not_keep_the_lock(tmp_path):
    """Data loading processes outlive a killed parent for seconds: they hold no lock."""
    folder = RunFolder(tmp_path)
    reader, writer = os.pipe()
    with folder:
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)  # the child has started
    try:
        with RunFolder(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_torn_last_line_is_left_out(tmp_path):
    """A kill while logging leaves half a line: it is not read, and a new run writes over it."""
    run(replace(ECT, fit={"max_steps": 3}), tmp_path / "a")
    lines = history(tmp_path / "a")
    torn = tmp_path / "b"
    torn.mkdir()
    (torn / "metrics.jsonl").write_text('{"iteration": 1, "a": 2}\n{"iteration": 2, "gene')
    assert [line["iteration"] for line in read_metrics(torn / "metrics.jsonl")] == [1]
    run(replace(ECT, fit={"max_steps": 3}), torn)  # killed before its first checkpoint: all anew
    assert history(torn) == lines


# --- going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [replace(DMD, dropout=0.2), ECT], ids=["dmd2", "ect"])
def test_a_resumed_run_is_the_same_run(tmp_path, tiny):
    """4 + 4 + 2 iterations equal 10, in the middle of DMD2's cycle, dropout on: bits and lines."""
    run(replace(tiny, fit={"max_steps": 10}), tmp_path / "whole")
    for steps in (4, 8, 10):
        run(replace(tiny, fit={"max_steps": steps}), tmp_path / "parts")
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave_with_0(tmp_path, number):
    """SIGTERM or SIGINT in a process of its own: exit code 0, a checkpoint, and the same end."""
    tiny = Tiny(dropout=0.1, fit={"max_steps": 60, "log_every": 2, "save_every": 1000})
    folder = tmp_path / "run"
    process = start(tiny, folder)
    wait_for_line(process, folder, 4)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 0, stderr_of(folder)
    (name,) = saved(folder)
    assert 4 <= int(name) < 60
    run(tiny, folder)
    run(tiny, tmp_path / "whole")
    assert same(state(folder), state(tmp_path / "whole"))
    assert history(folder) == history(tmp_path / "whole")


def test_an_interruption_makes_nothing_due_but_a_checkpoint(tmp_path):
    """Time is short after SIGTERM: no evaluation, no samples; handlers are as before."""
    method, calls = Stub(), []
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    proper = method.critic_loss

    def critic_loss(batch):
        if batch.draws.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return proper(batch)

    method.critic_loss = critic_loss
    watched = {"evaluate": lambda: calls.append(1) or {}, "draw_samples": calls.append}
    watched |= {"evaluate_every": 2, "sample_every": 2, "log_every": 2}
    result = go(method, numbers(), tmp_path, **watched)
    assert (result.iteration, result.interrupted) == (3, True)
    assert saved(tmp_path) == ["000003"]
    assert calls == [1, 2]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    result = go(method, numbers(), tmp_path)  # SIGTERM again, at an iteration long gone by
    assert (result.iteration, result.interrupted) == (20, False)


@pytest.mark.parametrize("full", ["half", "none"])
def test_disk_full_leaves_the_previous_checkpoint_good(tmp_path, monkeypatch, full):
    """ENOSPC halfway through a file: a sentence, the last checkpoint whole, nothing half there."""
    tiny = replace(DMD, fit={"max_steps": 8, "save_every": 4})
    run(replace(DMD, fit={"max_steps": 4}), tmp_path)
    files, proper = digest(tmp_path / "checkpoints"), checkpoint.save_file

    def save_file(tensors, path):
        if full == "half":
            proper(tensors, path)
            os.truncate(path, 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(
        StepDistillError, match=r"No space left.*Earlier checkpoints are whole"
    ) as e:
        run(tiny, tmp_path)
    assert e.value.exit_code == 1
    assert digest(tmp_path / "checkpoints") == files
    monkeypatch.undo()
    run(tiny, tmp_path)
    run(tiny, tmp_path.with_name("whole"))
    assert same(state(tmp_path), state(tmp_path.with_name("whole")))


@pytest.mark.slow
def test_a_file_size_limit_while_saving(tmp_path):
    """A real write that the system cuts off (RLIMIT_FSIZE), in a process of its own."""
    folder, tiny = tmp_path / "run", replace(DMD, fit={"max_steps": 12, "save_every": 3})
    process = start(tiny, folder, death="full")
    process.join(60)
    assert process.exitcode == 1
    assert "could not write checkpoint" in stderr_of(folder)
    assert saved(folder) == ["000003", "000006"]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["000003", "000006"]
    run(tiny, folder)
    run(tiny, tmp_path / "whole")
    assert same(state(folder), state(tmp_path / "whole"))


def test_no_room_for_the_log(tmp_path, monkeypatch):
    """metrics.jsonl that cannot be written ends the run with a sentence too."""
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(StepDistillError, match=r"could not write .*metrics\.jsonl"):
        RunFolder(tmp_path / "run").log({"iteration": 1})


def test_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    """Metrics NaN, 1, 5, 4, 2 at 2 ... 10 with keep=2: iteration 4 stays, and is the best."""
    scores = iter([math.nan, 1.0, 5.0, 4.0, 2.0])
    watched = {"evaluate": lambda: {"fid": next(scores)}, "evaluate_every": 2}
    go(Stub(), numbers(), tmp_path, max_steps=10, **watched)
    assert saved(tmp_path) == ["000004", "000008", "000010"]
    assert checkpoint.best(tmp_path / "checkpoints").name == "000004"
    assert checkpoint.read_index(tmp_path / "checkpoints" / "000004")["metric"] == 1.0


def test_leftovers_of_kills_are_no_checkpoints_and_are_cleared(tmp_path):
    """Folders half written or half removed are never chosen, and go with the next save."""
    go(Stub(), numbers(), tmp_path, max_steps=4)
    for name in ("000009.partial", "000002.removed"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    assert saved(tmp_path) == ["000004"]
    assert go(Stub(), numbers(), tmp_path, max_steps=6).iteration == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000004", "000006"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    """The difference is named, nested settings by their path; what changes no number is free."""
    settings = {"method": {"critic_steps": 2, "scale": (1.0, 2.0)}, "teacher": "ring"}
    go(Stub(), numbers(), tmp_path, max_steps=4, settings=settings)
    with pytest.raises(UserError, match="batch_size: 8 there, 16 now"):
        go(Stub(), numbers(), tmp_path, batch_size=16, settings=settings)
    other = {**settings, "method": {"critic_steps": 5, "scale": (1.0, 2.0)}}
    with pytest.raises(UserError, match=r"method\.critic_steps: 2 there, 5 now") as caught:
        go(Stub(), numbers(), tmp_path, settings=other)
    assert "scale" not in str(caught.value)
    free = {"accumulate": 2, "log_every": 3, "keep": 5, "save_every": 7, "workers": 0}
    assert go(Stub(), numbers(), tmp_path, max_steps=8, settings=settings, **free).iteration == 8
    with pytest.raises(UserError, match="lr_decay: 0 there, 2 now; max_steps: None there, 8 now"):
        go(Stub(), numbers(), tmp_path, max_steps=8, lr_decay=2, settings=settings)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    """Where the settings do not say it, the shapes do."""
    run(replace(ECT, fit={"max_steps": 2}), tmp_path)
    with pytest.raises(UserError, match=r"of other networks.*label"):
        run(replace(ECT, labelled=False, fit={"max_steps": 4}), tmp_path)
    with pytest.raises(UserError, match=r"float32.*there.*float64.*now"):
        run(replace(ECT, double=True, fit={"max_steps": 4}), tmp_path)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.INDEX])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    """A file cut short by someone else: which, and what to do."""
    run(replace(ECT, fit={"max_steps": 2}), tmp_path)
    path = tmp_path / "checkpoints" / "000002" / name
    os.truncate(path, 50)
    with pytest.raises(UserError, match=f"{name} is damaged.*remove"):
        run(replace(ECT, fit={"max_steps": 4}), tmp_path)


def test_resume_off_does_not_mix_two_runs(tmp_path):
    """An old run's checkpoints are neither loaded nor written among."""
    go(Stub(), numbers(), tmp_path, max_steps=4)
    with pytest.raises(UserError, match="holds 1 checkpoints and resume is off"):
        go(Stub(), numbers(), tmp_path, max_steps=2, resume=False)
    assert go(Stub(), numbers(), tmp_path / "new", max_steps=2, resume=False).iteration == 2


def test_a_finished_run_is_left_alone(tmp_path):
    """The same command again does nothing, and gives the averaged generator."""
    run(replace(ECT, fit={"max_steps": 4}), tmp_path)
    files = digest(tmp_path)
    result = run(replace(ECT, fit={"max_steps": 4}), tmp_path)
    assert (result.iteration, result.interrupted) == (4, False)
    assert digest(tmp_path) == files
    stored = state(tmp_path)
    assert all(torch.equal(v, stored[f"ema/{k}"]) for k, v in result.ema.weights.items())


def test_weights_of_a_checkpoint_alone(tmp_path):
    """``load_average`` puts a checkpoint's average into a role, for export."""
    run(replace(ECT, fit={"max_steps": 3}), tmp_path)
    role = build(ECT)[0].roles["generator"]
    (path,) = checkpoint.complete(tmp_path / "checkpoints")
    checkpoint.load_average(path, role)
    stored = state(tmp_path)
    assert all(torch.equal(p, stored[f"ema/{k}"]) for k, p in role.trainable().items())
    assert json.loads((path / checkpoint.INDEX).read_text())["iteration"] == 3
