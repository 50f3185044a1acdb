"""Errors that end a command with a sentence instead of a traceback, and their exit codes."""

from __future__ import annotations

import re


class StepDistillError(Exception):
    """Something a sentence explains. ``exit_code`` is what the command ends with."""

    exit_code = 1


class UserError(StepDistillError):
    """A mistake in what was asked: the message names the thing, the place and the mend."""

    exit_code = 2


class NonFiniteError(StepDistillError):
    """A NaN or Inf in a loss or a gradient: names the step, the term and the role."""

    exit_code = 3


def first_sentence(error: BaseException) -> str:
    """The first sentence of it: the hub client goes on with advice on tracebacks."""
    return re.split(r"\.\s", first_line(error), maxsplit=1)[0].rstrip(".")


def first_line(error: BaseException) -> str:
    """The first line of what a library says went wrong: they go on for long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
