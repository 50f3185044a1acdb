"""Write a run's page again: settings, curves, samples, and the student beside its teacher.

stepdistill report runs/dmd2                             # writes runs/dmd2/report.html
python -m stepdistill.evals.report runs/dmd2 --output page.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.report import write_report


@dataclass(frozen=True)
class Options:
    """Write a run's report.html, one page that needs nothing beside it.

    Args:
        run: the run folder
        output: the page to write; default: RUN/report.html
    """

    run: str
    output: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and print where it is."""
    options = parse("stepdistill report", (Options,), {}, arguments, positional=True).get(Options)
    output = Path(options.output) if options.output else None
    print(write_report(Path(options.run), output))


if __name__ == "__main__":
    guarded(main)
