"""One thread for every test and its children: the machines are small and shared, and sums keep
their order. ``--reached FILE`` records how closely the families' proofs hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in children

import pytest
import torch
from commands import check_exports_here, draw_no_report
from tiny import tiny_teacher_folder

torch.set_num_threads(1)

Reached = Callable[[str, str, float], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--reached FILE``: a line of JSON for each difference that a family's proof has measured."""
    parser.addoption("--reached", metavar="FILE")


@pytest.fixture(scope="session")
def reached(request: pytest.FixtureRequest) -> Reached:
    """``reached(family, proof, difference)``."""
    file = request.config.getoption("--reached")

    def record(family: str, proof: str, difference: float) -> None:
        if file is not None:
            with open(file, "a") as lines:
                lines.write(
                    json.dumps({"family": family, "proof": proof, "value": difference}) + "\n"
                )

    return record


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random class-conditional teacher folder."""
    return tiny_teacher_folder(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of ``train`` check their export in this process, and draw no curves."""
    check_exports_here(monkeypatch)
    draw_no_report(monkeypatch)
