"""``stepdistill`` commands run in this process: importing diffusers anew takes half a minute."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepdistill.cli import main

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler"
)


def run(*arguments: object) -> int:
    """The exit code of ``stepdistill ARGUMENTS``; a traceback fails the test."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def check_exports_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script of export's fresh process in this one, still without stepdistill."""

    def fake(command: Sequence[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-c"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["-c", command[3]])
            patch.chdir(cwd)
            patch.setitem(sys.modules, "stepdistill", None)
            exec(command[2], {"__name__": "__main__"})
        return subprocess.CompletedProcess(command, 0, "", "")

    module = importlib.import_module("stepdistill.selfcheck")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(run=fake))


def draw_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """``train`` without the curves of its report, which take longer than a tiny run."""
    module = importlib.import_module("stepdistill.distil.run")
    monkeypatch.setattr(module, "write_report", lambda run: run / "report.html")
