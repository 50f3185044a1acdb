"""Plain dataclasses are the truth; jsonargparse reads YAML and dotted overrides into them."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser

from .errors import UserError

C = TypeVar("C")


class Parser(ArgumentParser):
    """An argument parser whose errors are UserErrors that name the nearest right key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(self._with_nearest(str(ex or message)))

    def _with_nearest(self, message: str) -> str:
        known = sorted({action.dest for action in self._actions if action.dest != "help"})
        words = [w.strip("'\"`.,:;()[]{}-").replace("-", "_") for w in message.split()]
        for word in (w.split("=")[0] for w in words if w.split("=")[0] not in known):
            # a key in a message may be dotted, or stand without its group
            leaves = {name.rpartition(".")[2]: name for name in known}
            near = difflib.get_close_matches(word, known, 1, 0.75)
            near = near or [leaves[m] for m in difflib.get_close_matches(word, leaves, 1, 0.75)]
            if near and len(word) > 3:
                return f"{message}. Did you mean {near[0]}?"
        return message


@dataclass(frozen=True)
class Settings:
    """Parsed dataclasses by their type, and everything resolved as plain values."""

    parts: dict[type[Any], Any]
    resolved: dict[str, Any]

    def get(self, kind: type[C]) -> C:
        """The parsed instance of ``kind``."""
        part: C = self.parts[kind]
        return part


def parse(
    program: str,
    flat: Sequence[type[Any]],
    nested: Mapping[str, type[Any]],
    arguments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    positional: bool = False,
) -> Settings:
    """Read ``arguments`` (default: the command line) into dataclasses. UserError if wrong.

    The fields of ``flat`` dataclasses are options of their own (--max_steps), those of ``nested``
    ones are dotted (--method.critic_steps). ``--config FILE`` reads the same names from YAML;
    options given beside it win. ``defaults`` replace the dataclasses' own. With ``positional``,
    required fields are arguments without a flag (``fid A B``).
    """
    parser = Parser(prog=program, description=(flat[0].__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    for kind in flat:
        parser.add_class_arguments(kind, as_positional=positional)
    for name, kind in nested.items():
        parser.add_class_arguments(kind, name)
    if defaults:
        parser.set_defaults(dict(defaults))
    given = sys.argv[1:] if arguments is None else arguments
    switches = {f.name for kind in flat for f in dataclasses.fields(kind) if f.type == "bool"}
    values = parser.parse_args(underscored(given, switches)).as_dict()
    values.pop("config", None)
    parts: dict[type[Any], Any] = {}
    for kind in flat:
        parts[kind] = _build(kind, values)
    for name, kind in nested.items():
        parts[kind] = _build(kind, values[name])
    return Settings(parts, _plain(values))


def _build(kind: type[C], values: Mapping[str, Any]) -> C:
    assert dataclasses.is_dataclass(kind)
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML needs no tags."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def underscored(arguments: Sequence[str], switches: Collection[str] = ()) -> list[str]:
    """--max-steps -> --max_steps, and a bare switch --resume -> --resume=true."""
    out = []
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            if name in switches and not equals and following.lower() not in ("true", "false"):
                equals, value = "=", "true"
            argument = f"--{name}{equals}{value}"
        out.append(argument)
    return out


def write_yaml(values: dict[str, Any], path: Path, command: str) -> None:
    """The resolved settings, enough to repeat the run: ``command --config path``."""
    path.write_text(f"# {command} --config {path.name}\n" + yaml.safe_dump(values, sort_keys=False))
