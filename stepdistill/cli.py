"""The console command: ``stepdistill COMMAND ...`` runs a program of ``trainers`` or ``evals``.

Exit codes: 0 done, or a clean save on SIGTERM or SIGINT; 2 a mistake in what was asked; 3 a NaN or
Inf; 1 anything else. Help must not wait for torch, so imports stand where they are used.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import sys
from collections.abc import Callable, Collection, Sequence

from .errors import StepDistillError, UserError

# command -> (module to run, one line of help)
COMMANDS = {
    "quickstart": ("trainers.quickstart", "distil the built-in digits teacher and measure it"),
    "precompute": ("trainers.precompute", "encode prompts or images once, or sample pairs"),
    "train": ("", "train METHOD: distil a teacher with one of the methods"),
    "compare": ("trainers.compare", "train several methods with equal budgets, and measure each"),
    "recipes": ("trainers.list_recipes", "published settings, as config files of train"),
    "inspect": ("evals.inspect_memory", "what a training run will take of the memory"),
    "sample": ("evals.generate", "sample a student into a grid or a folder"),
    "export": ("trainers.export", "write a checkpoint's student as a diffusers folder"),
    "merge": ("trainers.merge", "A B: interpolate the weights of two students"),
    "eval": ("", "eval MODEL --protocol NAME: measure a model; also images, reference, compare"),
    "fid": ("evals.fid", "Frechet distance between images, models or references"),
    "report": ("evals.report", "write a run's report.html"),
    "methods": ("", "list the methods (--json)"),
    "families": ("", "list the families of models that can be loaded (--json)"),
}
EVALS = {
    "images": ("evals.evaluate_images", "A B: compare two sets of images, or references"),
    "reference": ("evals.make_reference", "write the reference of a set of images"),
    "compare": ("evals.compare_records", "records side by side: a table and a page"),
}
HELP = ("-h", "--help")
# not a mistake in what was asked, and no bug either: the disk
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def guarded(program: Callable[[], object]) -> None:
    """Run a program; a StepDistillError becomes a sentence and its exit code."""
    try:
        program()
        sys.stdout.flush()
    except StepDistillError as error:
        _leave(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has left: stepdistill methods | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK:
            raise
        _leave(f"could not write {error.filename or 'a file'}: {error.strerror}", 1)
    except KeyboardInterrupt:
        _leave("interrupted", 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of ``stepdistill``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    guarded(lambda: _run(given))


def _run(given: list[str]) -> None:
    if not given or given[0] in (*HELP, "help"):
        print(_help())
        return
    command, rest = given[0], given[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("stepdistill"))
    elif command not in COMMANDS:
        raise UserError(f"there is no command {command}.{_nearest(command, COMMANDS)}\n{_help()}")
    elif command == "methods":
        _list_methods(rest)
    elif command == "families":
        _list_families(rest)
    elif command == "train":
        _train(rest)
    elif command == "eval":
        _eval(rest)
    else:
        _launch(COMMANDS[command][0], rest)


def _launch(module: str, arguments: list[str]) -> None:
    """Run a leaf program as its own main, with the arguments as its command line."""
    before = sys.argv
    sys.argv = [f"stepdistill.{module}", *arguments]
    try:
        runpy.run_module(f"stepdistill.{module}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def _train(rest: list[str]) -> None:
    """``train METHOD ...``: the program of that name in trainers."""
    from .methods import METHODS

    programs = {*METHODS, "stages"}
    method = rest[0] if rest else ""
    listed = f"The methods are: {', '.join(METHODS)}"
    usage = f"usage: stepdistill train METHOD --teacher T --output DIR [options]\n{listed}"
    if method in HELP:
        print(f"{usage}\n(stepdistill train METHOD --help lists the options of one)")
        print("stepdistill train stages --config FILE --output DIR: several of them, in turn")
    elif not method or method.startswith("-"):
        raise UserError(f"train needs a method, before its options\n{usage}")
    elif method not in programs:
        raise UserError(f"there is no method {method}.{_nearest(method, programs)} {listed}")
    else:
        _launch(f"trainers.{method}", rest[1:])


def _eval(rest: list[str]) -> None:
    """``eval MODEL --protocol NAME``, or one of the commands that need no model."""
    if rest and rest[0] in EVALS:
        _launch(EVALS[rest[0]][0], rest[1:])
    elif not rest:
        width = max(map(len, EVALS))
        listed = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in EVALS.items())
        raise UserError(
            "eval needs a model and a protocol: stepdistill eval MODEL --protocol NAME --output "
            f"FILE (--help lists the options and the protocols), or one of\n{listed}"
        )
    else:
        _launch("evals.evaluate_model", rest)


def _list_methods(rest: list[str]) -> None:
    as_json = _as_json("methods", rest)
    if as_json is None:
        return
    from .methods import METHODS

    cards = [method.card.record() for method in METHODS.values()]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    for card in cards:
        needs = ", ".join(card["needs"]) or "nothing but the teacher"
        print(f"{card['name']:8} {card['title']}\n         {card['paper']}")
        print(f"         needs: {needs}; guidance: {card['guidance']}")
        print(f"         teachers: {', '.join(card['teachers'])}")


def _list_families(rest: list[str]) -> None:
    as_json = _as_json("families", rest)
    if as_json is None:
        return
    from . import families

    cards = [family.card.record() for family in families.every()]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    for card in cards:
        print(f"{card['name']:13} {card['task']:14} {card['pipeline']}")
        print(f"{'':13} {card['network']}, predicts {card['prediction']}")
        print(f"{'':13} students: {card['scheduler']}")


def _as_json(command: str, rest: list[str]) -> bool | None:
    """Whether --json was given; None after printing the help that was asked for instead."""
    if rest and rest[0] in HELP:
        print(f"usage: stepdistill {command} [--json]\n\n  --json  as a JSON list (default: text)")
        return None
    unknown = [argument for argument in rest if argument != "--json"]
    if unknown:
        raise UserError(f"stepdistill {command} takes --json alone, not {' '.join(unknown)}")
    return bool(rest)


def _leave(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _nearest(word: str, known: Collection[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: stepdistill COMMAND [options]    (COMMAND --help lists its options)", "", *lines]
    )
