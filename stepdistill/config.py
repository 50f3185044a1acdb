"""Plain dataclasses are the truth; jsonargparse reads YAML and dotted overrides into them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .parser import Parser

C = TypeVar("C")


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
    note: str = "",
) -> Settings:
    """Read ``arguments`` (default: the command line) into dataclasses. UserError if wrong.

    The fields of ``flat`` dataclasses are options of their own (--max_steps), those of ``nested``
    ones are dotted (--method.critic_steps). ``--config FILE`` reads the same names from YAML;
    options given beside it win, in any order. ``defaults`` replace the dataclasses' own. With
    ``positional``, required fields are arguments without a flag (``fid A B``). ``note`` ends the
    text of --help.
    """
    parser = Parser(program, flat, nested, defaults or {}, positional, note)
    values = parser.values(sys.argv[1:] if arguments is None else arguments)
    parts: dict[type[Any], Any] = {kind: _build(kind, values) for kind in flat}
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


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Values by name as a command line that :func:`parse` reads."""
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]


def write_yaml(values: dict[str, Any], path: Path, command: str) -> None:
    """The resolved settings, enough to repeat the run: ``command --config path``."""
    path.write_text(f"# {command} --config {path.name}\n" + yaml.safe_dump(values, sort_keys=False))
