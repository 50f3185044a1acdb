"""README's Python runs, and its commands have the options they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stepdistill.cli import COMMANDS, EVALS
from stepdistill.evaluation.protocols import PROTOCOLS
from stepdistill.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    images = names["images"]
    assert isinstance(images, list)
    assert len(images) == 4


def test_commands_exist() -> None:
    """Each make target, stepdistill command and method that README names is there."""
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    seen = 0
    for words in (words for words in lines if words):
        seen += 1
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
        elif words[0] == "stepdistill":
            assert words[1] in COMMANDS
            if words[1] == "train":
                assert words[2] in (*METHODS, "stages")
            if words[1] == "eval" and words[2] not in EVALS:
                assert words[words.index("--protocol") + 1] in PROTOCOLS
        else:
            assert words[0] == "accelerate"
            assert (
                ROOT / "trainers" / (words[words.index("-m") + 1].split(".")[-1] + ".py")
            ).exists()
    assert seen >= 5


def test_pictures_exist() -> None:
    """Every picture README shows is in the repository."""
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_table_is_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    """``make tables`` would change nothing."""
    import importlib

    tables = importlib.import_module("stepdistill.evals.tables")
    tables.main(
        [f"--readme={ROOT / 'README.md'}", f"--records={ROOT / 'evals' / 'records'}", "--check"]
    )
