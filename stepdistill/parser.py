"""The command line and YAML: jsonargparse's types, our help lines and sentences for mistakes."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from .errors import UserError
from .fields import Option, options, shown, spoken


class Help(DefaultHelpFormatter):
    """Shows the words of an :class:`Option` as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)  # type: ignore[no-untyped-call]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Each line of a note wrapped for itself: a list stays one."""
        kept = []
        for line in text.splitlines():
            named = re.match(r" +\S+ {2,}", line)
            after = indent + " " * (named.end() if named else 0)
            kept += textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=after)
        return "\n".join(kept)

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""


class Parser(ArgumentParser):
    """jsonargparse with our help lines, and errors that are UserErrors of one sentence."""

    def __init__(
        self,
        program: str,
        flat: Sequence[type[Any]],
        nested: Mapping[str, type[Any]],
        defaults: Mapping[str, Any],
        positional: bool,
        note: str,
    ) -> None:
        title = (flat[0].__doc__ or "").partition("\n")[0]
        super().__init__(
            prog=program,
            description=title,
            epilog=note,
            formatter_class=Help,
            allow_abbrev=False,
            print_config=None,
        )
        self.add_argument(
            "--config", action="config", metavar="FILE", help="YAML file with any of these options"
        )
        for kind in flat:
            self.add_class_arguments(kind, as_positional=positional)
        for name, kind in nested.items():
            self.add_class_arguments(kind, name)
        self.groups_of_options = set(nested)
        listed = [option for kind in flat for option in options(kind)]
        listed += [o for name, kind in nested.items() for o in options(kind, f"{name}.")]
        self.options = {option.name: option for option in listed}
        required = [option for option in listed if option.required]
        # one list of any length, the only argument without a flag: compare A B C
        self.takes_words = positional and [option.items for option in required] == [str]
        self.places: dict[str, str] = {}  # how to name an option in a message: where it was given
        self.set_defaults(dict(defaults))
        self._describe(positional)

    def values(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Everything by name, groups nested. UserError for whatever is wrong."""
        given = underscored(arguments, {o.name for o in self.options.values() if o.is_switch})
        lists = {o.name: o.items for o in self.options.values() if o.items}
        if self.takes_words:
            lists = {name: kind for name, kind in lists.items() if not self.options[name].required}
        given = gathered(given, lists)
        if self.takes_words:
            given = words_together(given)
        files, rest = self._split(given)
        for file in files:
            for name, value in _members(read_yaml(file), self.groups_of_options, file):
                self._check(name, f" in {file}")
                self.places[name] = f"{name} in {file}"
                if not self.options[name].allows(value):
                    raise UserError(self._wrong_value(self.options[name], value))
        for name in (argument[2:].partition("=")[0] for argument in rest):
            if name in self.options:
                self.places[name] = f"--{name}"
        configs = [f"--config={file}" for file in files]
        values = self.parse_args([*configs, *rest]).as_dict()
        values.pop("config", None)
        return values

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a sentence instead of printing the usage and leaving."""
        text = str(ex or message)
        key = re.search(r'Parser key "([^"]+)"', text)
        value = re.search(r"(?:Got|Given) value: (.*)\Z", text, re.DOTALL)
        if key and value and key[1] in self.options:
            text = self._wrong_value(self.options[key[1]], value[1])
        elif found := re.search(r"arguments are required: (.*)\Z", text):
            missing = ", ".join(self._flag(name) for name in found[1].split(", "))
            text = f"{self.prog} needs {missing}: {self._see_help()}"
        elif found := re.match(r"argument (\S+): expected one argument", text):
            text = f"{found[1]} needs a value"
        elif found := re.match(r"unrecognized arguments: (.*)", text):
            text = f"unexpected {found[1]}: write --name value, and a list as one value, [1,2]"
            name = found[1].split()[0].partition("=")[0]
            if name.startswith("--") and self._flag(name[2:]) == name[2:]:
                text = f"{name[2:]} is given without its name: {self.usage}"
        raise UserError(text)

    def _describe(self, positional: bool) -> None:
        """The help text and placeholder of each option; one line of usage."""
        actions = {action.dest: action for action in self._actions}
        actions["help"].help = "show this and leave"
        for group in self._action_groups:  # titled by the dataclass's docstring: its first sentence
            group.title = (group.title or "").partition(". ")[0]
            if group.title == (self.description or "").rstrip("."):
                group.title = "settings"
        for name in self.groups_of_options:
            actions[name].help = argparse.SUPPRESS  # --method FILE would be a second --config
        usage = []
        for option in self.options.values():
            action = actions[option.name]
            action.help = option.help(self.get_default(option.name))
            if option.required and positional:
                usage.append(option.name + (" ..." if self.takes_words else ""))
                continue
            action.metavar = option.metavar()
            if option.required:
                usage.append(f"--{option.name} {action.metavar}")
        self.usage = " ".join([self.prog, *usage, "[options]"])

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """(the files of --config, the other arguments). UserError for an unknown option."""
        files: list[str] = []
        rest: list[str] = []
        left = iter(arguments)
        for argument in left:
            name, equals, value = argument.partition("=")
            if name == "--config":
                file = value if equals else next(left, "")
                if not file:
                    raise UserError("--config needs a value, a YAML file")
                files.append(file)
                continue
            bare = name.lstrip("-")
            if _is_number(argument) and rest and _is_bare_option(rest[-1]):
                rest[-1] += f"={argument}"  # argparse takes -1e-5 for an option
                continue
            if bare != name and argument not in ("-h", "--help") and not _is_number(argument):
                self._check(bare, "", name.removesuffix(bare))
            rest.append(argument)
        return files, rest

    def _check(self, name: str, place: str, dashes: str = "") -> None:
        """UserError for an unknown option, with the nearest right one."""
        if name in self.options:
            return
        if name in self.groups_of_options:
            members = [o for o in self.options if o.startswith(f"{name}.")]
            listed = ", ".join(dashes + member for member in members)
            raise UserError(f"{dashes}{name}{place} is a group of options: {listed}")
        near = nearest(name, self.options)
        mend = f". Did you mean {dashes and '--'}{near}?" if near else f": {self._see_help()}"
        raise UserError(f"there is no option {dashes}{name}{place}{mend}")

    def _wrong_value(self, option: Option, value: Any) -> str:
        got = "null" if value is None else shown(value)
        place = self.places.get(option.name, option.name)
        return f"{place} must be {spoken(option.hint)}, got {got or 'nothing'}"

    def _see_help(self) -> str:
        return f"{self.prog} --help lists all options"

    def _flag(self, name: str) -> str:
        """The name as it is given on the command line."""
        positional = {action.dest for action in self._actions if not action.option_strings}
        return name if name in positional else f"--{name}"


def nearest(word: str, known: Collection[str]) -> str | None:
    """The closest of ``known``; a dotted name is also found by its last part alone."""
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    spelled = word.replace("-", "_")
    for names in ({name: name for name in known}, by_leaf):
        for asked in dict.fromkeys((spelled, spelled.rpartition(".")[2])):
            if near := difflib.get_close_matches(asked, names, 1, 0.7):
                return names[near[0]]
    return None


def read_yaml(file: str) -> dict[str, Any]:
    """The mapping in a YAML file. UserError if it cannot be read or is none."""
    try:
        values = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read the config file {file}: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{file}{line} is not valid YAML: {problem}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold options, one `name: value` a line")
    return values


def _members(
    values: Mapping[Any, Any], groups: Collection[str], file: str
) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what a config file holds."""
    for name, value in values.items():
        if name not in groups:
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{member}", own) for member, own in value.items())
        else:
            raise UserError(f"{name} in {file} is a group: put its options below it, indented")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_bare_option(argument: str) -> bool:
    return argument.startswith("--") and "=" not in argument


def underscored(arguments: Sequence[str], switches: Collection[str] = ()) -> list[str]:
    """--max-steps -> --max_steps, and a bare switch --resume -> --resume=true."""
    out = []
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            if name in switches and not equals and following.lower() not in _BOOLEANS:
                equals, value = "=", "true"
            argument = f"--{name}{equals}{value}"
        out.append(argument)
    return out


def gathered(arguments: Sequence[str], lists: Mapping[str, Any]) -> list[str]:
    """--steps 1 2 4 -> --steps=[1, 2, 4]; one value that is a list already stays.

    ``lists`` are the options that take several values, with the type of one: texts go on to the
    next option, numbers to the next word.
    """
    out: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        kind = lists.get(name) if argument.startswith("--") else None
        if kind is None:
            out.append(argument)
            continue
        values = [value] if equals else []
        while not equals and left and (_is_number(left[0]) or (kind is str and left[0][:1] != "-")):
            values.append(left.pop(0))
        if not equals and not values:
            out += [argument, *left[:1]]  # a list, or a mistake that is told as such
            left = left[1:]
        elif values[0].startswith("["):
            out.append(f"--{name}={values[0]}")
        else:
            quoted = values if kind is not str else [json.dumps(value) for value in values]
            out.append(f"--{name}=[{', '.join(quoted)}]")
    return out


def words_together(arguments: Sequence[str]) -> list[str]:
    """a b --output c d -> '["a", "b", "d"]' --output c: the words without a flag as one list."""
    words: list[str] = []
    out: list[str] = []
    left = iter(arguments)
    for argument in left:
        if not argument.startswith("-"):
            words.append(argument)
            continue
        out.append(argument)
        if "=" not in argument and argument not in _HELP:
            out += [value for value in [next(left, None)] if value is not None]
    is_list = len(words) == 1 and words[0].startswith("[")
    return [*(words if is_list or not words else [json.dumps(words)]), *out]


_HELP = {"-h", "--help"}
_BOOLEANS = {"true", "false", "yes", "no", "null"}
