"""Uploading a student: what is sent where, and what a refusal says. The hub itself is faked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from commands import check_exports_here, draw_no_report, run
from huggingface_hub.errors import HfHubHTTPError
from tiny_pipelines import PIPELINES

from stepdistill.distil.checks import warn_of_path
from stepdistill.distil.options import DistilOptions
from stepdistill.errors import StepDistillError, UserError
from stepdistill.sharing import push_to_hub
from stepdistill.teachers import load_teacher

HOST = "https://hub.example"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """As little of one as the upload looks at."""
    (tmp_path / "stepdistill.json").write_text(json.dumps({"plan": {}}))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls that the hub's client would have sent."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(_: object, name: str, **given: Any) -> huggingface_hub.RepoUrl:
        calls.append(("create", {"name": name, **given}))
        return huggingface_hub.RepoUrl(f"{HOST}/{name}", endpoint=HOST)

    def upload(_: object, **given: Any) -> None:
        calls.append(("upload", given))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    return calls


def test_the_whole_folder_is_sent(student: Path, hub: list[tuple[str, dict[str, Any]]]) -> None:
    """The repository is made first, private when asked, and its address comes back."""
    address = push_to_hub(student, "me/fast", private=True)
    assert address == f"{HOST}/me/fast"
    assert hub[0] == ("create", {"name": "me/fast", "private": True, "exist_ok": True})
    assert hub[1][0] == "upload"
    assert hub[1][1]["repo_id"] == "me/fast"
    assert hub[1][1]["folder_path"] == student


@pytest.mark.slow
def test_a_run_pushes_what_it_exported(
    tmp_path: Path,
    hub: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad name is refused before training; of "both" the LoRA goes beside the student."""
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
    PIPELINES["sd15"]().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    told = ["--teacher", tmp_path / "teacher", "--prompts", tmp_path / "prompts.txt"]
    size = ["--load.height=16", "--load.width=16", "--method.gan_weight=0", "--lora.rank=2"]
    short = ["--max_steps=1", "--batch_size=2", "--export=both", "--output", tmp_path / "run"]
    assert run("train", "dmd2", *told, *size, *short, "--push_to_hub=me/fast/er") == 2
    assert not (tmp_path / "run").exists()
    assert run("train", "dmd2", *told, *size, *short, "--push_to_hub=me/fast") == 0
    assert f"will show {tmp_path / 'teacher'}" in capsys.readouterr().err
    sent = [(call["repo_id"], call["folder_path"].name) for kind, call in hub if kind == "upload"]
    assert sent == [("me/fast", "student"), ("me/fast-lora", "lora")]
    card = json.loads((tmp_path / "run/student/stepdistill.json").read_text())
    assert card["data"] == "prompts of prompts.txt"


def test_refusals(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a student, not a name, no right: a sentence each."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no exported student"):
        push_to_hub(tmp_path / "empty", "me/fast")
    with pytest.raises(UserError, match="is no name of a repository"):
        push_to_hub(student, "me/fast/er")

    class Refusal(HfHubHTTPError):
        def __init__(self) -> None:
            OSError.__init__(self, "401 Unauthorized")

    def refuse(*_: object, **__: object) -> None:
        raise Refusal

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(StepDistillError, match=r"401.*hf auth login.*the folder itself is whole"):
        push_to_hub(student, "me/fast")


@pytest.mark.parametrize(
    ("export", "pushed", "local", "said"),
    [
        ("both", "me/fast", True, True),
        ("lora", "me/fast", True, True),
        ("lora", "me/fast", False, False),
        ("lora", "", True, False),
        ("folder", "me/fast", True, False),
    ],
)
def test_a_loras_card_that_would_show_a_path_is_warned_of(
    export: Any,
    pushed: str,
    local: bool,
    said: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its code loads the teacher from where it lay: of use to strangers from the hub alone."""
    PIPELINES["dit"]().save_pretrained(tmp_path)
    teacher = replace(load_teacher(tmp_path), **({} if local else {"source": "owner/model"}))
    options = DistilOptions("t", "o", export=export, push_to_hub=pushed)
    warn_of_path(options, teacher)
    assert (f"will show {tmp_path}" in capsys.readouterr().err) == said
