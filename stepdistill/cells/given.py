"""Settings that a person gives every cell of a comparison, in place of its preset's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..presets import lengths

# what a comparison sets itself
OF_COMPARISON = ("teacher", "output", "data", "steps", "times", "seed", "max_steps", "dry_run")


def given_settings(words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE -> {name: value as written}.

    UserError for another form, a name that stands twice, and one that a comparison sets itself.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals or not value:
            raise UserError(
                f"settings are given as NAME=VALUE, such as method.gan_weight=0.5, got {word}"
            )
        if name in found:
            raise UserError(f"settings name {name} twice: name each once")
        if name in OF_COMPARISON or name in lengths.CELL:
            raise UserError(f"{name} is set by the comparison itself: leave it out of --settings")
        found[name] = value
    return found


def as_read(resolved: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of options, dotted names in groups, of the types that ``train`` reads them as."""
    found = {}
    for name in names:
        group, _, own = name.rpartition(".")
        found[name] = (resolved[group] if group else resolved)[own]
    return found


def in_words(given: Mapping[str, Any]) -> str:
    """name value, name value."""
    return ", ".join(f"{name} {value}" for name, value in given.items())
