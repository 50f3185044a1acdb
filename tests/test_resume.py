"""kill -9 and go on: the end is the end of a run that was never killed, to the last bit.

DMD2 with a GAN and dropout on the 2-D ring, a checkpoint every third iteration, so that kills fall
into steps, log lines and checkpoint writing. The run that is never killed has an interpreter of its
own, so that nothing may depend on a process (a salted ``hash`` would).
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from run_tiny import (
    PLACES,
    Tiny,
    free_port,
    history,
    run,
    start,
    state,
    stderr_of,
    wait_for_line,
)
from safetensors.torch import load_file

from stepdistill import checkpoint
from stepdistill.runs import read_metrics

pytestmark = pytest.mark.slow
RANDOM_KILLS = 20


def tiny(steps, **options):
    settings = {"max_steps": steps, "save_every": 3, "log_every": 1, "keep": 2, "lr_decay": 20}
    return Tiny(critic_steps=2, dropout=0.1, fit=settings, **options)


def uninterrupted(kind, folder):
    """The same run by a command of its own."""
    script = str(Path(__file__).with_name("run_tiny.py"))
    command = [sys.executable, script, str(folder), json.dumps(asdict(kind))]
    subprocess.run(command, check=True, timeout=200, capture_output=True)


def last_line(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return lines[-1]["iteration"] if lines else 0


def newest(folder):
    """The newest checkpoint's iteration, 0 if there is none. Every one that counts is whole."""
    found = checkpoint.complete(folder / "checkpoints")
    for path in found:
        tensors = load_file(path / checkpoint.WEIGHTS)
        assert all(value.isfinite().all() for value in tensors.values())
        assert checkpoint.read_index(path)["iteration"] == int(path.name)
    return int(found[-1].name) if found else 0


def same_end(killed, whole):
    """Weights, averages and moments to the last bit, and the lines of metrics.jsonl."""
    a, b = state(killed), state(whole)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert history(killed) == history(whole)


def test_twenty_kills_at_random_moments(tmp_path):
    """20 x kill -9, then to the end: bit-identical weights and average, and the same lines.

    Each start says where it goes on from: the newest whole checkpoint, never a torn one.
    """
    moments, kind = random.Random(0), tiny(240)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    half_written, resumed = 0, []
    for _ in range(RANDOM_KILLS):
        before = newest(killed)
        process = start(kind, killed)
        wait_for_line(process, killed, last_line(killed) + moments.randint(1, 8))
        time.sleep(moments.uniform(0, 0.06))
        assert process.is_alive(), "the run must be long enough for all kills"
        process.kill()
        process.join()
        half_written += any((killed / "checkpoints").glob(f"*{checkpoint.PARTIAL}"))
        assert newest(killed) >= before
        resumed.append(before)
    run(kind, killed)
    said = stderr_of(killed)
    assert [f"from iteration {i}" in said for i in resumed if i] == [True] * sum(map(bool, resumed))
    assert len(set(resumed)) > RANDOM_KILLS // 2, "the kills must come after progress"
    print(f"{half_written} of {RANDOM_KILLS} kills while a checkpoint was written; at {resumed}")
    uninterrupted(kind, whole)
    same_end(killed, whole)


def test_a_kill_at_each_place(tmp_path):
    """One kill in each place of an iteration's bookkeeping, in the order of the file's writing.

    step: between critic and generator; line: in a line of metrics.jsonl; write, index: in the
    checkpoint's files; rename, renamed: before and after; prune: while an old one is removed.
    """
    kind = tiny(9 * len(PLACES) + 12)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for place in PLACES:
        before = newest(killed)
        process = start(kind, killed, death=place)
        process.join(100)
        assert process.exitcode == -9, (place, stderr_of(killed))
        leftovers = {p.suffix for p in (killed / "checkpoints").iterdir()} - {""}
        torn = {"write": checkpoint.PARTIAL, "index": checkpoint.PARTIAL}
        torn |= {"rename": checkpoint.PARTIAL, "prune": checkpoint.REMOVED}
        assert leftovers == ({torn[place]} if place in torn else set()), place
        assert newest(killed) >= before + 6
    run(kind, killed)
    uninterrupted(kind, whole)
    same_end(killed, whole)


def test_two_processes_killed(tmp_path):
    """Both ranks killed, then both again: the end of two ranks that were never killed."""
    kind = tiny(30, double=True)
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def both(folder):
        port = free_port()
        return [start(kind, folder, rank=r, ranks=2, port=port) for r in (0, 1)]

    ranks = both(killed)
    wait_for_line(ranks[0], killed, 10)
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()
    assert newest(killed) >= 9
    for folder in (killed, whole):
        ranks = both(folder)
        for process in ranks:
            process.join(100)
        assert [p.exitcode for p in ranks] == [0, 0], stderr_of(folder)
    same_end(killed, whole)
