"""The console command: ``stepdistill COMMAND ...`` runs a program of ``trainers`` or ``evals``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence

from .errors import StepDistillError


def guarded(program: Callable[[], object]) -> None:
    """Run a program; a StepDistillError becomes a sentence and its exit code."""
    try:
        program()
    except StepDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
