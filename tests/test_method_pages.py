"""docs/methods.md says what the code says, and of every method."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from stepdistill.cells.table import Group, Row
from stepdistill.cli import COMMANDS
from stepdistill.errors import UserError
from stepdistill.methods import METHODS
from stepdistill.methods.matching import MatchingConfig
from stepdistill.methods.vsd import VSDConfig

ROOT = Path(__file__).parent.parent
PAGE, RECORDS = ROOT / "docs" / "methods.md", f"--records={ROOT / 'evals/records/methods'}"
pages = importlib.import_module("stepdistill.evals.method_pages")


def test_the_page_is_what_the_code_says() -> None:
    """``make tables`` would change nothing."""
    pages.main([f"--page={PAGE}", RECORDS, "--check"])


def test_a_changed_default_is_found(tmp_path: Path) -> None:
    """A page with another default is refused by --check, and mended without it."""
    own = tmp_path / "methods.md"
    own.write_text(PAGE.read_text().replace("| 4.5 |", "| 5.5 |", 1))
    with pytest.raises(UserError, match="not what the code says"):
        pages.main([f"--page={own}", RECORDS, "--check"])
    pages.main([f"--page={own}", RECORDS])
    assert own.read_text() == PAGE.read_text()


def test_knobs_are_those_that_a_method_adds_or_changes() -> None:
    """VSD's guidance has another default, its critic a rank, and its t_min is as in all others."""
    shown = pages.knobs(VSDConfig, MatchingConfig)
    assert "| `--method.guidance_scale` | 4.5 |" in shown
    assert "| `--method.critic_rank` | 64 |" in shown
    assert "t_min" not in shown
    assert "t_min" in pages.knobs(VSDConfig)


def test_figures_are_of_the_method_and_say_its_place() -> None:
    """The second of two in one call, alone in four; another method's page lacks them."""

    def row(method: str, steps: int, ratio: float) -> Row:
        known = {"fid_ratio": (ratio, ratio), "accuracy": (99.5, 98.5), "diversity": (1.0, None)}
        return Row(method, steps, (0, 1), known)

    rows = (row("sid", 1, 1.25), row("dmd2", 1, 1.5), row("dmd2", 4, 0.75))
    group = Group("digits", 1.2e6, 50_000, {}, "class_accuracy", rows, ())
    one, four = pages.figures("dmd2", [group]).splitlines()[2:]
    assert one == "| digits | 1,200,000 | 1 | 2 | 1.50 | 2 of 2 | 99.00 ± 0.71 | 1.000 |"
    assert four.startswith("| digits | 1,200,000 | 4 | 2 | 0.75 | 1 of 1 |")
    assert pages.figures("sid", [group]).count("digits") == 1
    assert pages.figures("vsd", [group]) == "Not among the methods compared."


def test_every_method_has_a_section_with_its_paper_and_its_file() -> None:
    """The arXiv number of its card, the command and the file of the code."""
    text = PAGE.read_text()
    for name, method in METHODS.items():
        assert f"stepdistill train {name}`" in text
        assert f"stepdistill/methods/{name}.py" in text
        for number in re.findall(r"arXiv:\d+\.\d+", method.card.paper):
            assert number in text, (name, number)
    for command in re.findall(r"`stepdistill (\w+)", text):
        assert command in COMMANDS
