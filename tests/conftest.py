"""One thread for every test and its children: the machines are small and shared, and sums keep
their order. ``--reached FILE`` records how closely the families' proofs hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in children

import pytest
import torch

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
