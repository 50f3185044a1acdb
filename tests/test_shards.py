"""Precomputed samples: written whole, gone on with after a kill, and read by the row."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import safetensors.torch
import torch
from run_tiny import Tiny, build, go, history, same, state
from safetensors import SafetensorError

from stepdistill.data import shard_writer
from stepdistill.data.loading import Cut, Micro, global_batches
from stepdistill.data.shard_writer import ShardWriter
from stepdistill.data.sharded_data import ShardedData, load_shards
from stepdistill.errors import NonFiniteError, StepDistillError, UserError

MADE_FROM = {"teacher": "digits", "source": {"path": "p.txt", "limit": 7}}


def sample(i: int) -> dict[str, torch.Tensor]:
    """Inputs 0 to 4 are 2x3, later ones 3x2; every value tells its input."""
    shape = (1, 2, 3) if i < 5 else (1, 3, 2)
    return {
        "x0": torch.full(shape, float(i)),
        "z": torch.full(shape, -float(i)),
        "cond.text": torch.full((4, 2), i, dtype=torch.bfloat16),
        "cond.label": torch.tensor(i),
    }


def write(folder: Path, inputs: int = 12, size: int = 2, finish: bool = True) -> Path:
    """Input 3 and the last are left out."""
    with ShardWriter(folder, MADE_FROM, size) as writer:
        for batch in writer.batches([5, inputs], 3):
            for i in batch:
                if i in (3, inputs - 1):
                    writer.leave_out(f"input {i}")
                else:
                    writer.add(sample(i), f"caption {i}")
        if finish:
            writer.finish()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """In any order, with repeats, over shards: x0, conditioning, extras and texts."""
    data = load_shards(write(tmp_path))
    kept = [i for i in range(11) if i != 3]
    assert len(data) == len(kept)
    assert data.left_out == ("input 3", "input 11")
    assert data.made_from == {**MADE_FROM, "shard_size": 2}
    assert [shard.samples for shard in data.shards] == [2, 2, 2, 2, 2]
    assert [list(group) for group in data.groups] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    for indices in ([9, 4, 6, 4, 8], [3, 0], [5]):
        x0, cond = data.fetch(indices)
        expected = [sample(kept[i]) for i in indices]
        assert x0 is not None
        assert torch.equal(x0, torch.stack([e["x0"] for e in expected]))
        assert sorted(cond) == ["label", "text"]
        assert torch.equal(cond["text"], torch.stack([e["cond.text"] for e in expected]))
        assert cond["text"].dtype == torch.bfloat16
        assert cond["label"].tolist() == [kept[i] for i in indices]
        assert torch.equal(data.fetch_named(indices, ["z"])["z"], -x0)
        assert data.texts(indices) == [f"caption {kept[i]}" for i in indices]
    for words in ("10 samples", "x0 1x2x3 F32", "1 other shapes", "2 left out: input 3, input 11"):
        assert words in data.describe()


def test_samples_without_x0_or_without_conditioning(tmp_path: Path) -> None:
    """Prompts alone give no x0; samples of an unconditional model an empty conditioning."""
    for name in ("cond.text", "x0"):
        with ShardWriter(tmp_path / name, {}) as writer:
            for i in range(3):
                writer.add({name: torch.tensor([float(i)])})
            writer.finish()
    x0, cond = load_shards(tmp_path / "cond.text").fetch([2, 1])
    assert x0 is None
    assert cond["text"].tolist() == [[2], [1]]
    x0, cond = load_shards(tmp_path / "x0").fetch([2, 1])
    assert cond.batch_size == 2
    assert not cond


# ---- kills


def write_and_hang(folder: Path, torn: Event) -> None:
    """Leave the second shard of this process half written, and wait to be killed."""
    saved, calls = shard_writer.save_file, []

    def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        saved(tensors, path, metadata)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:-20])
            torn.set()
            time.sleep(60)

    shard_writer.save_file = save_file
    write(folder)


def test_a_killed_writing_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle of the second and, gone on with, of its next shard: the folder at the
    end is that of a writing that was never cut off, to the last bit."""
    whole = write(tmp_path / "whole")
    killed = tmp_path / "killed"
    for shards in (1, 2):  # that each child leaves whole
        fork = multiprocessing.get_context("fork")
        torn = fork.Event()
        child = fork.Process(target=write_and_hang, args=(killed, torn))
        child.start()
        assert torn.wait(60)
        with pytest.raises(UserError, match="in use by another process"):
            write(killed)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert len(list(killed.glob("*.safetensors"))) == shards
        assert len(list(killed.glob("*.partial"))) == 1
        with pytest.raises(UserError, match="is not complete: run its precomputation again"):
            load_shards(killed)
    write(killed)
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("end", range(13))
def test_going_on_makes_the_same_batches(end: int, tmp_path: Path) -> None:
    """Wherever it is cut off, a batch holds the same inputs: a network's last bits depend on it.

    Those of whole shards are not seen again, and no batch goes over a shard or a group.
    """

    def run(folder: Path, last: int) -> list[range]:
        seen = []
        with ShardWriter(folder, MADE_FROM, 4) as writer:
            for batch in writer.batches([5, 12], 3):
                seen.append(batch)
                for i in batch:
                    if i == last:
                        return seen
                    if i in (2, 4):
                        writer.leave_out(f"{i}")
                    else:
                        writer.add(sample(i))
            writer.finish()
        return seen

    straight = run(tmp_path / "straight", 99)
    assert straight == [range(3), range(3, 5), range(5, 8), range(8, 9), range(9, 12)]
    first = run(tmp_path / "cut", end)
    again = run(tmp_path / "cut", 99)
    assert first == straight[: len(first)]
    assert again == straight[len(straight) - len(again) :]
    assert contents(tmp_path / "cut") == contents(tmp_path / "straight")
    if 5 <= end < 12:
        assert again[0].start in (5, 9)  # the first group was whole


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """The same command again finds nothing to do."""
    before = contents(write(tmp_path))
    with ShardWriter(tmp_path, MADE_FROM, 2) as writer:
        assert writer.finished
        assert writer.position == 12
        assert list(writer.batches([5, 12], 3)) == []
    assert contents(tmp_path) == before


# ---- full disks


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a shard or at the index: a sentence, the shards before stay, and it goes on."""
    whole = contents(write(tmp_path / "whole"))
    saved, calls = safetensors.torch.save_file, []

    def save_file(tensors: object, path: Path, metadata: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        saved(tensors, path, metadata)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr("stepdistill.data.shard_writer.save_file", save_file)
        with pytest.raises(StepDistillError, match=r"00002\.safetensors: .*The 2 shards before"):
            write(folder)
    assert {n: c for n, c in contents(folder).items() if c} == {
        n: whole[n] for n in ("00000.safetensors", "00001.safetensors")
    }
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StepDistillError, match=r"index\.json: .*No space left on device"):
            write(folder)
    assert not (folder / "index.json").exists()
    write(folder)
    assert contents(folder) == whole


# ---- refusals


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def put(name: str, content: str = "") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


LAST = "00004.safetensors"
READING: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no index": (lambda f: (f / "index.json").unlink(), ["is not complete"]),
    "cut": (lambda f: cut(f / LAST), [LAST, "bytes", "copy it again"]),
    "gone": (lambda f: (f / LAST).unlink(), [LAST, "is missing"]),
    "garbled": (lambda f: garble(f / LAST), [LAST, "is damaged"]),
    "index half": (put("index.json", '{"shards": ['), ["index.json is damaged"]),
    "index other": (put("index.json", "[]"), ["index.json is damaged"]),
    "index poor": (put("index.json", "{}"), ["index.json is damaged", "lacks"]),
}


@pytest.mark.parametrize("name", READING)
def test_damaged_folders_are_not_read(name: str, tmp_path: Path) -> None:
    """A shard of the right length with garbage in it is named when it is read, others before."""
    change, says = READING[name]
    change(write(tmp_path))
    with pytest.raises(UserError) as refused:
        load_shards(tmp_path).fetch([9])
    for words in [str(tmp_path), *says]:
        assert words in str(refused.value)


def test_folders_without_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder of precomputed samples at {tmp_path}/none"):
        load_shards(tmp_path / "none")
    with pytest.raises(UserError, match=f"{tmp_path} holds no precomputed samples"):
        load_shards(tmp_path)
    with pytest.raises(UserError, match=r"holds cond.label, .* z, and no y: precompute it"):
        load_shards(write(tmp_path / "a")).fetch_named([0], ["y"])


WRITING: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "something else": (put("thesis.txt"), ["holds thesis.txt, which is no precomputed sample"]),
    "a gap": (
        lambda f: (f / "00001.safetensors").unlink(),
        ["has 00002.safetensors but no 00001.safetensors"],
    ),
    "garbled": (lambda f: garble(f / LAST), [LAST, "is damaged"]),
    "a stranger": (
        lambda f: safetensors.torch.save_file({"a": torch.zeros(2)}, f / "00005.safetensors"),
        ["00005.safetensors is no shard of precomputed samples"],
    ),
}


@pytest.mark.parametrize("name", WRITING)
def test_folders_that_cannot_be_gone_on_with(name: str, tmp_path: Path) -> None:
    """Nothing in them is changed."""
    change, says = WRITING[name]
    change(write(tmp_path, finish=False))
    before = contents(tmp_path)
    with pytest.raises(UserError) as refused:
        write(tmp_path)
    for words in [str(tmp_path), *says]:
        assert words in str(refused.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finish", [True, False])
def test_samples_of_something_else_are_not_mixed(finish: bool, tmp_path: Path) -> None:
    """Another source, or shards of another size, also beside a torn one, which stays."""
    before = contents(write(tmp_path, finish=finish))
    other = {**MADE_FROM, "source": {"path": "q.txt", "limit": 7}}
    for made_from, size, says in (
        (other, 2, "source.path: 'p.txt' there, 'q.txt' now"),
        (MADE_FROM, 3, "shard_size: 2 there, 3 now"),
    ):
        with pytest.raises(UserError, match=f"made from something else .{says}"):
            ShardWriter(tmp_path, made_from, size).__enter__()
    assert contents(tmp_path) == before


def test_samples_that_cannot_be_written(tmp_path: Path) -> None:
    """NaN, conditioning of another length, no sample at all, a folder that cannot be."""
    with ShardWriter(tmp_path / "nan", {}, 1) as writer:
        writer.add(sample(0))
        with pytest.raises(NonFiniteError, match=r"NaN or Inf in x0 of input 1 \('a fox'\)"):
            writer.add({**sample(0), "x0": torch.tensor([0, torch.nan])}, "a fox")
        for wrong in (torch.zeros(5, 2, dtype=torch.bfloat16), torch.zeros(4, 2)):
            with pytest.raises(ValueError, match="the shape of the conditioning"):
                writer.add({**sample(0), "cond.text": wrong})
            assert not (tmp_path / "nan" / "00001.safetensors").exists()
    with ShardWriter(tmp_path / "none", {}) as writer:
        writer.leave_out("a")
        with pytest.raises(UserError, match="none of 1 inputs gave a sample"):
            writer.finish()
    with pytest.raises(UserError, match="shard_size must be at least 1, got 0"):
        ShardWriter(tmp_path, {}, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        ShardWriter(tmp_path / "file" / "a", {}).__enter__()
    with ShardWriter(tmp_path / "short", {}) as writer:
        batches = writer.batches([4], 2)
        next(batches)
        writer.add(sample(0))
        with pytest.raises(ValueError, match="1 inputs are settled, not 2"):
            next(batches)


# ---- reading


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts mapped pages on Linux")
def test_only_the_asked_rows_are_read(tmp_path: Path) -> None:
    """A few rows of a 64 MiB shard bring a small part of it into memory."""
    with ShardWriter(tmp_path, {}) as writer:
        for i in range(256):
            writer.add({"x0": torch.full((256, 256), float(i))})
        writer.finish()
    data = load_shards(tmp_path)
    x0, _ = data.fetch([200, 3])
    assert x0 is not None
    assert x0[:, 0, 0].tolist() == [200, 3]
    resident = total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = str(tmp_path) in line
        elif inside and line.startswith(("Rss:", "Size:")):
            value = int(line.split()[1])
            resident, total = (
                (resident + value, total) if line.startswith("Rss") else (resident, total + value)
            )
    assert total > 60_000
    assert 0 < resident < total / 4


def test_workers_read_the_same_batches(tmp_path: Path) -> None:
    """In this process, in forked ones, and after a journey to another process."""
    data = load_shards(write(tmp_path, size=3))
    cut_ = Cut.of(4, 4, accumulate=2)

    def batches(data: ShardedData, workers: int) -> list[list[Micro]]:
        return list(global_batches(data, cut_, 0, 0, 6, workers))

    here = batches(data, 0)
    for others in (batches(data, 2), batches(pickle.loads(pickle.dumps(data)), 0)):
        for a, b in zip(here, others, strict=True):
            for one, other in zip(a, b, strict=True):
                assert one.shards == other.shards
                assert one.x0 is not None
                assert other.x0 is not None
                assert torch.equal(one.x0, other.x0)
                assert torch.equal(one.cond["label"], other.cond["label"])
    for iteration in here:  # one group a global batch, x0 and conditioning of the same sample
        assert len({m.x0.shape for m in iteration if m.x0 is not None}) == 1
        for micro in iteration:
            assert micro.x0 is not None
            assert torch.equal(micro.x0[:, 0, 0, 0].long(), micro.cond["label"])


def test_a_training_on_shards_is_that_on_tensors(tmp_path: Path) -> None:
    """Losses, weights and moments to the last bit: the order and the samples are the same."""
    method, tensors = build(Tiny())
    assert tensors.x0 is not None
    with ShardWriter(tmp_path / "shards", {}, 7) as writer:
        for x0, label in zip(tensors.x0, tensors.cond["class_labels"], strict=True):
            writer.add({"x0": x0, "cond.class_labels": label})
        writer.finish()
    go(method, tensors, tmp_path / "tensors", max_steps=9)
    go(build(Tiny())[0], load_shards(tmp_path / "shards"), tmp_path / "run", max_steps=9)
    assert history(tmp_path / "run") == history(tmp_path / "tensors")
    assert same(state(tmp_path / "run"), state(tmp_path / "tensors"))


def test_a_shard_is_on_the_disk_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no file of its final name with holes in it: flush, rename, flush."""
    done: list[str] = []
    replaced = os.replace

    def replace(old: Path, new: Path) -> None:
        done.append(f"rename {new.name}")
        replaced(old, new)

    monkeypatch.setattr(shard_writer, "flush", lambda path: done.append(f"flush {path.name}"))
    monkeypatch.setattr(os, "replace", replace)
    with ShardWriter(tmp_path / "out", {}) as writer:
        writer.add(sample(0))
        writer.finish()
    names = ("00000.safetensors", "index.json")
    assert done == [
        step for n in names for step in (f"flush {n}.partial", f"rename {n}", "flush out")
    ]


def test_a_buffer_that_is_used_again(tmp_path: Path) -> None:
    """What was added stays as it was."""
    buffer = torch.zeros(2)
    with ShardWriter(tmp_path, {}) as writer:
        for i in range(3):
            writer.add({"x0": buffer.fill_(i)})
        writer.finish()
    assert load_shards(tmp_path).fetch_named([0, 1, 2], ["x0"])["x0"][:, 0].tolist() == [0, 1, 2]


def test_the_index_is_readable(tmp_path: Path) -> None:
    """By others: counts, shapes, dtypes and bytes of each shard."""
    index = json.loads((write(tmp_path) / "index.json").read_text())
    assert index["samples"] == 10
    assert index["inputs"] == 12
    shard = index["shards"][-1]
    assert shard["file"] == LAST
    assert shard["samples"] == 2
    assert shard["bytes"] == (tmp_path / LAST).stat().st_size
    assert shard["shapes"]["x0"] == [1, 3, 2]
    assert shard["dtypes"] == {"x0": "F32", "z": "F32", "cond.text": "BF16", "cond.label": "I64"}
    stored = safetensors.torch.load_file(tmp_path / LAST)
    assert torch.equal(stored["x0"], torch.stack([sample(9)["x0"], sample(10)["x0"]]))
