"""docs/methods.md says what the code says, and of every method."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from stepdistill.cells.table import Group, Row
from stepdistill.cli import COMMANDS
from stepdistill.errors import UserError
from stepdistill.methods import METHODS
from stepdistill.methods.matching import MatchingConfig
from stepdistill.methods.vsd import VSDConfig

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
pages = importlib.import_module("stepdistill.evals.method_pages")
figures = importlib.import_module("stepdistill.evals.method_figures")
tables = importlib.import_module("stepdistill.evals.tables")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the records lie that the page is rendered from."""
    monkeypatch.chdir(ROOT)


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


def test_every_table_is_rendered(tmp_path: Path) -> None:
    """A page whose tables are emptied is the same again: none is left as it stands."""
    own, between = tmp_path / "methods.md", r"(<!-- ([^>]+): begin -->\n).*?(<!-- \2: end -->)"
    emptied = re.sub(between, r"\1\3", PAGE.read_text(), flags=re.DOTALL)
    assert len(emptied) < len(PAGE.read_text()) / 2
    own.write_text(emptied)
    pages.main([f"--page={own}"])
    assert own.read_text() == PAGE.read_text()


def test_knobs_are_those_that_a_method_adds_or_changes() -> None:
    """VSD's guidance has another default, its critic a rank, and its t_min is as in all others."""
    shown = pages.knobs(VSDConfig, MatchingConfig)
    assert "| `--method.guidance_scale` | 4.5 |" in shown
    assert "| `--method.critic_rank` | 64 |" in shown
    assert "t_min" not in shown
    assert "t_min" in pages.knobs(VSDConfig)


def test_figures_are_of_the_method_and_say_its_place() -> None:
    """The second of two in one call, alone in four, which is no place; another method's page lacks
    them, and what a row was given stands with its teacher."""

    def row(method: str, steps: int, ratio: float) -> Row:
        known = {"fid_ratio": (ratio, ratio), "accuracy": (99.5, 98.5), "diversity": (1.0, None)}
        return Row(method, steps, (0, 1), known)

    rows = (row("sid", 1, 1.25), row("dmd2", 1, 1.5), row("dmd2", 4, 0.75))
    group = Group("digits", 1.2e6, 50_000, {}, "class_accuracy", rows, ())
    one, four = figures.compared("dmd2", [group]).splitlines()[2:]
    assert one == "| digits | 1,200,000 | 1 | 2 | 1.50 | 2 of 2 | 99.00 ± 0.71 | 1.000 |"
    assert four.startswith("| digits | 1,200,000 | 4 | 2 | 0.75 | – |")
    given = replace(rows[1], given={"method.gan_weight": 0.5})
    (one,) = figures.compared("dmd2", [replace(group, rows=(given,))]).splitlines()[2:]
    assert one.startswith("| digits, method.gan_weight 0.5 | 1,200,000 | 1 |")
    assert figures.compared("sid", [group]).count("digits") == 1
    assert tables.several_seeds(group)
    assert not tables.several_seeds(replace(group, rows=(replace(rows[0], seeds=(0,)),)))
    nowhere = Path("nowhere")
    assert pages.figures("vsd", [group], nowhere) == "Not measured here."
    assert pages.figures("fdiv", [group], nowhere) == "Not measured here."


def test_records_of_one_method_stand_with_it(tmp_path: Path) -> None:
    """Means over seeds of modes kept, the time ratio, and what was forgotten beside plain SiD."""
    runs = {
        "reverse_kl": [{"kept": 4, "effective": 3.0}, {"kept": 6, "effective": 4.0}],
        "forward_kl": [{"kept": 4, "effective": 3.5}, {"kept": 4, "effective": 3.5}],
    }
    modes = {"settings": {"seeds": 2, "kept": 0.02}, "runs": runs}
    cost = {"method": "fdiv", "beside": "dmd2", "ratio": 1.0321, "ratio_quartiles": [1.01, 1.05]}
    cost |= {"pairs": 40, "batch_size": 128, "device": "x86_64", "threads": 1}
    rows = [
        {"method": name, "generated": shown, "fid_others": fid, "accuracy_others": 99.0, **more}
        for name, shown, fid, more in (
            ("sfd", 0.1, 0.0055, {"override": [8]}),
            ("sfd", 0.3, 0.0055, {"override": [8]}),
            ("sfd", 4.0, 0.0060, {"override": []}),
            ("sid", 98.0, 0.005, {"override": None}),
        )
    ]
    forgotten = {"forget": 3, "asked": 10_000, "others": 45_000, "students": rows}
    for name, content in (("mode_coverage", modes), ("step_cost", cost), ("forgetting", forgotten)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    shown = pages.figures("fdiv", [], tmp_path)
    assert "| `reverse_kl` | 5.0 ± 1.4 | 3.50 ± 0.71 |  |" in shown
    assert "| `forward_kl` | 4.0 | 3.50 | 1 of 2 |" in shown
    assert f"](../{tmp_path}/mode_coverage.png)" in shown
    assert (
        "takes 1.032 times one of `dmd2` (median of 40 pairs, quartiles 1.010 and 1.050;" in shown
    )
    shown = pages.figures("sfd", [], tmp_path)
    assert "| `sfd`, override 8 | 2 | 0.20 ± 0.14 | 0.00550 | 99.00 |" in shown
    assert "| `sfd`, override any other | 1 | 4.00 | 0.00600 | 99.00 |" in shown
    assert "| `sid` | 1 | 98.00 | 0.00500 | 99.00 |" in shown
    assert "distance of `sfd`, override 8 is 1.10 times that of `sid`." in shown


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
