"""Functions of someone's own, by the name that a setting gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .errors import UserError


def function_named(named: str, setting: str, takes: str) -> Callable[..., Any]:
    """The function "module:function" that ``setting`` names; UserError if there is none.

    ``takes`` says in the sentence what it is to be: "a function of ...".
    """
    module, _, name = named.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{setting} names {named}, write module:function: {error}") from error
    if not callable(found):
        raise UserError(f"{setting} names {named}, which is no function: write {takes}")
    function: Callable[..., Any] = found
    return function
