"""The console command: ``stepdistill COMMAND ...`` runs a program of ``trainers`` or ``evals``."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Sequence

from .errors import StepDistillError, UserError

# command -> (module to run, one line of help)
COMMANDS = {
    "quickstart": ("trainers.quickstart", "distil the built-in digits teacher and measure it"),
    "train": ("", "train METHOD: distil a teacher with one of the methods"),
    "sample": ("evals.generate", "sample a student into a grid or a folder"),
    "export": ("trainers.export", "write a checkpoint's student as a diffusers folder"),
    "fid": ("evals.fid", "Frechet distance between images, models or references"),
    "report": ("evals.report", "write a run's report.html"),
    "methods": ("", "list the methods (--json)"),
}


def guarded(program: Callable[[], object]) -> None:
    """Run a program; a StepDistillError becomes a sentence and its exit code."""
    try:
        program()
    except StepDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of ``stepdistill``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    guarded(lambda: _run(given))


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return
    command, rest = given[0], given[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("stepdistill"))
    elif command not in COMMANDS:
        raise UserError(
            f"there is no command {command}.{_nearest(command, list(COMMANDS))}\n{_help()}"
        )
    elif command == "methods":
        _list_methods(rest)
    elif command == "train":
        _launch(f"trainers.{_method_name(rest)}", rest[1:])
    else:
        _launch(COMMANDS[command][0], rest)


def _launch(module: str, arguments: list[str]) -> None:
    """Run a leaf program as its own main, with the arguments as its command line."""
    sys.argv = [f"stepdistill.{module}", *arguments]
    runpy.run_module(f"stepdistill.{module}", run_name="__main__", alter_sys=True)


def _method_name(rest: list[str]) -> str:
    from .methods import METHODS

    listed = f"The methods are: {', '.join(METHODS)}"
    if not rest or rest[0] in ("-h", "--help"):
        raise UserError(f"usage: stepdistill train METHOD --teacher T --output DIR. {listed}")
    if rest[0] not in METHODS:
        raise UserError(f"there is no method {rest[0]}.{_nearest(rest[0], list(METHODS))} {listed}")
    return rest[0]


def _list_methods(rest: list[str]) -> None:
    from .methods import METHODS

    unknown = [argument for argument in rest if argument != "--json"]
    if unknown:
        raise UserError(f"stepdistill methods takes --json alone, not {' '.join(unknown)}")
    cards = [method.card.record() for method in METHODS.values()]
    if rest:
        print(json.dumps(cards, indent=1))
        return
    for card in cards:
        needs = ", ".join(card["needs"]) or "nothing but the teacher"
        print(f"{card['name']:8} {card['title']}\n         {card['paper']}")
        print(f"         needs: {needs}; guidance: {card['guidance']}")
        print(f"         teachers: {', '.join(card['teachers'])}")


def _nearest(word: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: stepdistill COMMAND [options]    (COMMAND --help lists its options)", "", *lines]
    )
