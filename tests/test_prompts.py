"""Prompts from files and from ``datasets``: their order, what is left out, and how much is read."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from stepdistill.data.prompts import read_prompts
from stepdistill.errors import UserError

TEXTS = ["a red fox", "", 'two, "green" owls', "drei Möwen\u2028am Meer", "   ", "a boat"]
KEPT = [text for text in TEXTS if text.strip()]


def text_file(folder: Path) -> str:
    (folder / "p.txt").write_bytes("\r\n".join(TEXTS).encode("utf-8-sig"))
    return str(folder / "p.txt")


def json_lines(folder: Path) -> str:
    rows = [f'{{"id": {i}, "caption": {_json(text)}}}' for i, text in enumerate(TEXTS)]
    (folder / "p.jsonl").write_text("\n".join(rows))
    return str(folder / "p.jsonl")


def comma_separated(folder: Path) -> str:
    rows = [f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(TEXTS)]
    (folder / "p.csv").write_text("\n".join(["id,text", *rows]))
    return str(folder / "p.csv")


def parquet(folder: Path) -> str:
    columns = {"id": list(range(len(TEXTS))), "prompt": [text or None for text in TEXTS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "p.parquet")
    return str(folder / "p.parquet")


def saved(folder: Path) -> str:
    datasets.Dataset.from_dict({"prompt": TEXTS, "id": [*range(6)]}).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder: Path) -> str:
    split = datasets.Dataset.from_dict({"prompt": TEXTS})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(folder / "splits")
    return str(folder / "splits")


def loaded(folder: Path) -> str:
    """A folder that ``datasets.load_dataset`` reads, as it reads a name on the hub."""
    (folder / "named").mkdir()
    json_lines(folder / "named")
    return str(folder / "named")


def _json(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


@pytest.mark.parametrize(
    "write", [text_file, json_lines, comma_separated, parquet, saved, saved_splits, loaded]
)
@pytest.mark.usefixtures("cache")
def test_every_source_gives_the_same_prompts(write: Callable[[Path], str], tmp_path: Path) -> None:
    """In order, each time again, without the empty ones; ``limit`` counts what is left."""
    source = write(tmp_path)
    prompts = read_prompts(source)
    assert list(prompts) == KEPT
    assert list(prompts) == KEPT
    assert prompts.count() == (4, 2)
    assert list(read_prompts(source, limit=2)) == KEPT[:2]
    assert read_prompts(source, limit=2).count() == (2, 1)
    assert read_prompts(source, limit=9).count() == (4, 2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_first_of_a_big_file(tmp_path: Path) -> None:
    """Lines after the first N are not looked at: a broken one there is no error."""
    file = tmp_path / "big.jsonl"
    with file.open("w") as out:
        out.writelines(f'{{"text": "prompt {i}"}}\n' for i in range(1000))
        out.write("{torn")
    assert list(read_prompts(str(file), limit=1000)) == [f"prompt {i}" for i in range(1000)]
    assert list(itertools.islice(read_prompts(str(file)), 3)) == [
        "prompt 0",
        "prompt 1",
        "prompt 2",
    ]
    with pytest.raises(UserError, match=r"big\.jsonl, line 1001 is not valid JSON"):
        read_prompts(str(file)).count()


def test_only_the_asked_column_of_parquet_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images may be a thousand times its texts."""
    asked = []
    whole = pyarrow.parquet.ParquetFile.iter_batches

    def noted(self: object, **given: object) -> object:
        asked.append(given["columns"])
        return whole(self, **given)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", noted)
    assert list(read_prompts(parquet(tmp_path))) == KEPT
    assert asked
    assert all(columns == ["prompt"] for columns in asked)


def test_a_column_by_name(tmp_path: Path) -> None:
    """And the first of prompt, caption, text where none is named, whatever their order."""
    file = tmp_path / "p.csv"
    file.write_text("text,other,caption\na,b,c\n")
    assert list(read_prompts(str(file))) == ["c"]
    assert list(read_prompts(str(file), column="other")) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", '{"a": "x"}', ["has the columns a, and none of prompt, caption, text"]),
        ("p.csv", "a,b\n1,2", ["has the columns a, b, and none of"]),
        ("p.jsonl", '{"text": "x"}\n\n[1]', ["line 3 must hold a JSON object"]),
        ("p.jsonl", '{"text": "x"}\n{"a": "x"}', ["line 2 has no text"]),
        ("p.jsonl", '{"text": "x"}\n{"text": ["x"]}', ["line 2: text must be text, and is a list"]),
        ("p.jsonl", "\n", ["is empty"]),
        ("p.csv", "", ["does not begin with a line that names its columns"]),
        ("p.csv", "text,b\nx,y\na, b,c", ["line 3 has 3 values for 2 columns", "quotes"]),
        ("p.csv", 'text\n"torn', ["line 2 is not valid CSV"]),
        ("p.txt", b"good\nb\xff", ["line 2 is not UTF-8"]),
        ("p.txt", " \n\n", ["holds no prompt"]),
        ("p.parquet", "no", ["is no readable parquet file"]),
        ("p.json", "{}", ["is none of .txt, .jsonl, .csv, .parquet"]),
    ],
    ids=repr,
)
def test_files_that_cannot_be_used(
    name: str, content: str | bytes, says: list[str], tmp_path: Path
) -> None:
    """The file, the line and the mend."""
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read_prompts(str(file)).count()
    for words in [str(file), *says]:
        assert words in str(refused.value)


@pytest.mark.usefixtures("cache")
def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a column, a split, a name, a folder without data, a library."""
    with pytest.raises(UserError, match=r"there is no file .*none\.txt"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="columns id, caption, and no captoin"):
        read_prompts(json_lines(tmp_path), column="captoin")
    with pytest.raises(UserError, match="has no split val: it has train, test"):
        read_prompts(saved_splits(tmp_path), split="val")
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        read_prompts(json_lines(tmp_path), limit=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/empty is no file or folder of a known kind"):
        read_prompts(str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing:fine is no file or folder of a known kind"):
        read_prompts("nobody/nothing:fine")
    for source, library in ((parquet(tmp_path), "pyarrow"), (saved(tmp_path), "datasets")):
        for module in (library, f"{library}.parquet"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            UserError, match=rf'library {library}: pip install "stepdistill\[data\]"'
        ):
            read_prompts(source)


def test_a_split_is_asked_for_by_name(tmp_path: Path) -> None:
    """Of what has several; where there is none it is not passed over."""
    source = tmp_path / "splits"
    rows = {name: datasets.Dataset.from_dict({"prompt": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(rows).save_to_disk(source)
    assert list(read_prompts(str(source))) == ["train"]
    assert list(read_prompts(str(source), split="test")) == ["test"]
    for write in (text_file, parquet, saved):
        with pytest.raises(UserError, match="has no splits, and so no test: leave --split out"):
            read_prompts(write(tmp_path), split="test")
