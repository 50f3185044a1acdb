"""docs/methods.md says what the code says, and of every method."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from stepdistill.cli import COMMANDS
from stepdistill.errors import UserError
from stepdistill.methods import METHODS
from stepdistill.methods.matching import MatchingConfig
from stepdistill.methods.vsd import VSDConfig

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
pages = importlib.import_module("stepdistill.evals.method_pages")


def test_the_page_is_what_the_code_says() -> None:
    """``make tables`` would change nothing."""
    pages.main([f"--page={PAGE}", "--check"])


def test_a_changed_default_is_found(tmp_path: Path) -> None:
    """A page with another default is refused by --check, and mended without it."""
    own = tmp_path / "methods.md"
    own.write_text(PAGE.read_text().replace("| 4.5 |", "| 5.5 |", 1))
    with pytest.raises(UserError, match="not what the code says"):
        pages.main([f"--page={own}", "--check"])
    pages.main([f"--page={own}"])
    assert own.read_text() == PAGE.read_text()


def test_knobs_are_those_that_a_method_adds_or_changes() -> None:
    """VSD's guidance has another default, its critic a rank, and its t_min is as in all others."""
    shown = pages.knobs(VSDConfig, MatchingConfig)
    assert "| `--method.guidance_scale` | 4.5 |" in shown
    assert "| `--method.critic_rank` | 64 |" in shown
    assert "t_min" not in shown
    assert "t_min" in pages.knobs(VSDConfig)


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
