"""The functions of someone's own that a run calls after each iteration."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ..errors import UserError
from ..fit import Hook
from .options import DistilOptions

TAKES = "write a function of (iteration, method, ema)"


def own_hooks(options: DistilOptions) -> list[Hook]:
    """The functions that ``hooks`` names. UserError for one that is not there, or that cannot be
    called with an iteration, a method and an average.
    """
    return [_hook(named) for named in options.hooks]


def _hook(named: str) -> Hook:
    module, _, name = named.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"hooks names {named}, write module:function: {error}") from error
    if not callable(found):
        raise UserError(f"hooks names {named}, which is no function: {TAKES}")
    try:
        inspect.signature(found).bind(1, None, None)
    except TypeError as error:
        raise UserError(f"hooks names {named}, which does not fit ({error}): {TAKES}") from error
    except ValueError:  # of some builtins Python knows no signature: the call will tell
        pass
    hook: Hook = found
    return hook
