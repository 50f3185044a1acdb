"""A precomputation from end to end, with an encoder of the tests: estimates, buckets, resuming."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.data.buckets import bucket_order, crop_to, make_buckets
from stepdistill.data.captioned_images import load_captioned_images
from stepdistill.data.estimate import spoken_bytes, spoken_time
from stepdistill.data.images import CorruptImageError
from stepdistill.data.precompute import Encoded, LeftOut, precompute
from stepdistill.data.prompts import read_prompts
from stepdistill.data.shard_writer import ShardWriter
from stepdistill.data.sharded_data import load_shards
from stepdistill.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pictures(folder: Path) -> Path:
    """Twenty of random sizes, number 7 cut off in its pixels and number 9 in its head."""
    random = np.random.default_rng(0)
    for i in range(20):
        height, width = random.integers(8, 40, 2)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}")
    for number, end in (("07", 100), ("09", 5)):
        (folder / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes()[:end])
    return folder


class Killed(Exception):
    """Instead of a kill."""


def from_images(source: Path, folder: Path, kill_at: int = 99) -> None:
    """What a command does with captioned images, corrupt ones left out, killed at an input."""
    images = load_captioned_images(str(source))
    plan = bucket_order(images.sizes(skip_corrupt=True), make_buckets(16, 8))

    def encode(batch: range) -> list[Encoded | LeftOut]:
        results: list[Encoded | LeftOut] = []
        for position in batch:
            if position == kill_at:
                raise Killed
            index = plan.order[position]
            try:
                image, caption = images[index]
            except CorruptImageError:
                results.append(LeftOut(images.name(index)))
                continue
            cropped = crop_to(image, plan.size_at(position))
            x0 = torch.from_numpy(np.array(cropped.image)).permute(2, 0, 1) / 127.5 - 1
            tensors = {
                "x0": x0 + len(batch),  # as a network's last bits, it depends on the batch
                "cond.time_ids": torch.tensor(cropped.time_ids),
                "cond.text": torch.tensor([int(caption.split()[1])]),
            }
            results.append(Encoded(tensors, caption))
        return results

    with ShardWriter(folder, {"source": str(source)}, shard_size=4) as writer:
        precompute(writer, encode, plan.ends, batch_size=3)


def test_images_by_buckets_killed_anywhere(tmp_path: Path) -> None:
    """Every readable image once, at its bucket's size, with its own caption and sizes; the folder
    of a run killed at any input and gone on with is the same to the last bit."""
    (tmp_path / "images").mkdir()
    source = pictures(tmp_path / "images")
    from_images(source, tmp_path / "whole")
    data = load_shards(tmp_path / "whole")
    assert len(data) == 18
    assert {Path(name).name for name in data.left_out} == {"07.png", "09.png"}
    assert len(data.groups) > 2
    seen = []
    for group in data.groups:
        x0, cond = data.fetch(list(group))
        assert x0 is not None
        for row, ids in enumerate(cond["time_ids"]):
            i = int(cond["text"][row])
            with Image.open(source / f"{i:02}.png") as image:
                assert ids[:2].tolist() == [image.height, image.width]
            assert ids[4:].tolist() == [*x0.shape[2:]]
            assert data.texts([group[row]]) == [f"picture {i}"]
            seen.append(i)
    assert sorted(seen) == sorted({*range(20)} - {7, 9})
    for kill_at in (0, 3, 5, 9, 14, 19):
        folder = tmp_path / f"{kill_at}"
        with pytest.raises(Killed):
            from_images(source, folder, kill_at)
        from_images(source, folder)
        assert contents(folder) == contents(tmp_path / "whole")


def from_prompts(
    source: Path, folder: Path, encode: Callable[[str], torch.Tensor], batch_size: int = 2
) -> None:
    """What a command does with prompts."""
    prompts = read_prompts(str(source))
    with ShardWriter(folder, {"source": str(source)}, shard_size=3) as writer:
        rest = islice(prompts, writer.position, None)

        def encoded(batch: range) -> list[Encoded | LeftOut]:
            return [Encoded({"cond.text": encode(t)}, t) for t in islice(rest, len(batch))]

        precompute(writer, encoded, [prompts.count().prompts], batch_size)


def test_prompts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Conditioning without x0; estimates are told; a finished folder is not encoded again."""
    source = tmp_path / "p.txt"
    source.write_text("\n\n".join(f"prompt {i}" for i in range(10)))
    from_prompts(source, tmp_path / "out", lambda t: torch.full((100,), float(t[-1])))
    said = capsys.readouterr().err
    assert f"{tmp_path}/out: about 4.0 KiB for 10 samples" in said
    assert "about 0 s left" in said
    data = load_shards(tmp_path / "out")
    x0, cond = data.fetch([7, 2])
    assert x0 is None
    assert cond["text"][:, 0].tolist() == [7, 2]
    assert data.texts([7]) == ["prompt 7"]
    before = (tmp_path / "out" / "index.json").stat().st_mtime_ns
    from_prompts(source, tmp_path / "out", lambda t: 1 / 0)
    assert (tmp_path / "out" / "index.json").stat().st_mtime_ns == before


def test_other_inputs_than_before(tmp_path: Path) -> None:
    """A file that has grown, or shrunk, since its prompts were encoded."""
    source = tmp_path / "p.txt"
    for count in (5, 6, 4):
        source.write_text("\n".join(["text"] * count))
        if count == 5:
            from_prompts(source, tmp_path / "out", lambda _: torch.zeros(1))
            continue
        with pytest.raises(UserError, match=f"made from 5 inputs, and there are {count} now"):
            from_prompts(source, tmp_path / "out", lambda _: torch.zeros(1))


def test_a_batch_size_of_zero(tmp_path: Path) -> None:
    """It would go on for ever."""
    (tmp_path / "p.txt").write_text("text")
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        from_prompts(tmp_path / "p.txt", tmp_path / "out", lambda _: torch.zeros(1), 0)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused after the first batch, before a shard is written; what is there is counted off."""
    source = tmp_path / "p.txt"
    source.write_text("\n".join(["text"] * 10))
    usage = SimpleNamespace(free=9 * 4004)
    monkeypatch.setattr("stepdistill.data.estimate.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError) as refused:
        from_prompts(source, tmp_path / "out", lambda _: torch.zeros(1000))
    for words in (f"{tmp_path}/out needs about 39.1 KiB for 10 samples (3.9 KiB each)", "35.2 KiB"):
        assert words in str(refused.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))

    calls: list[str] = []

    def three(text: str) -> torch.Tensor:
        calls.append(text)
        if len(calls) > 4:
            raise Killed
        return torch.zeros(1000)

    usage.free = 10 * 4004
    with pytest.raises(Killed):
        from_prompts(source, tmp_path / "out", three)
    usage.free = 7 * 4004  # three of ten are there
    from_prompts(source, tmp_path / "out", lambda _: torch.zeros(1000))
    assert len(load_shards(tmp_path / "out")) == 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_bytes_in_words(given: int, said: str) -> None:
    assert spoken_bytes(given) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [(4.4, "4 s"), (61, "1 min"), (3599, "1 h"), (7500, "2 h 5 min"), (200_000, "2 d 7 h 33 min")],
)
def test_time_in_words(given: float, said: str) -> None:
    assert spoken_time(given) == said
