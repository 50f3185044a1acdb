"""What the fields of a settings dataclass say of themselves: help text, placeholder, sentence.

The words beside a field are written once, in the dataclass: the comment on the field's own line, or
the field's entry in the ``Args`` section of the docstring. ``--help`` shows the same words.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring


@dataclass(frozen=True)
class Option:
    """One field as an option of the command line; ``name`` is dotted (method.gan_weight)."""

    name: str
    hint: Any  # the resolved annotation
    required: bool
    text: str  # what is written beside the field

    def metavar(self) -> str:
        """The placeholder of its value in --help: N, X, [X,X], {a,b}; the name for text."""
        return _placeholder(_without_none(self.hint), self.name.rpartition(".")[2].upper())

    def help(self, default: Any) -> str:
        """Its line in --help, with what happens if it is left out."""
        if self.required:
            return f"{self.text} (required)"
        if "default:" in self.text or self.text.startswith("(needed)"):
            return self.text
        return f"{self.text} (default: {shown(default) if default != '' else 'none'})"

    def allows(self, value: Any) -> bool:
        """False for None where the annotation has none; other types are the parser's to check."""
        return value is not None or type(None) in get_args(self.hint)

    @property
    def is_switch(self) -> bool:
        """Whether a bare --name means true."""
        return self.hint is bool

    @property
    def items(self) -> Any:
        """The type of its items where any number of values may follow --name, else None."""
        arguments = get_args(self.hint)
        is_list = get_origin(self.hint) is tuple and arguments[-1] is ...
        return arguments[0] if is_list else None


def options(kind: type[Any], prefix: str = "") -> list[Option]:
    """The fields of dataclass ``kind`` as options named ``prefix`` + field."""
    hints, texts = get_type_hints(kind), field_texts(kind)
    return [
        Option(
            prefix + f.name,
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
            texts.get(f.name, ""),
        )
        for f in dataclasses.fields(kind)
    ]


def field_texts(kind: type[Any]) -> dict[str, str]:
    """What is written beside each field: its comment, or else its entry in ``Args``.

    A field that is inherited as it is keeps the words of where it was first written.
    """
    texts: dict[str, str] = {}
    for own in reversed(kind.__mro__):
        if dataclasses.is_dataclass(own):
            texts |= _own_texts(own)
    return texts


def _own_texts(kind: type[Any]) -> dict[str, str]:
    described = parse_docstring(inspect.getdoc(kind) or "").params
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in described}
    return {**texts, **_comments(kind)}


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment at the end of each field's line; {} where there is no source to read."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:
        return {}
    comments = {
        token.end[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        node.target.id: comments[node.end_lineno]
        for node in body.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.end_lineno in comments
    }


def spoken(hint: Any) -> str:
    """An annotation in words: int -> "a whole number"."""
    arguments = get_args(hint)
    if _is_union(hint):
        return " or ".join(spoken(a) for a in arguments)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) is tuple:
        example = _EXAMPLES.get(arguments[0], "[a, b]")
        if arguments[-1] is ...:
            return f"a list such as {example}"
        return f"a list of {len(arguments)} values such as {example}"
    return _WORDS.get(hint, str(hint))


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]" if value else "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    return "none" if value is None else str(value)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_EXAMPLES: dict[Any, str] = {int: "[1, 2]", float: "[0.5, 0.9]"}
_LETTERS: dict[Any, str] = {int: "N", float: "X", bool: "[true|false]"}


def _placeholder(hint: Any, name: str) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        inner = ["..." if a is ... else _LETTERS.get(a, "NAME") for a in get_args(hint)]
        return f"[{','.join(inner)}]"
    return _LETTERS.get(hint, name)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _without_none(hint: Any) -> Any:
    kept = [a for a in get_args(hint) if a is not type(None)]
    return kept[0] if _is_union(hint) and len(kept) == 1 else hint
