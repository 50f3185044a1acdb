"""The functions of someone's own that a run calls after each iteration."""

from __future__ import annotations

import inspect

from ..errors import UserError
from ..fit import Hook
from ..named import function_named
from .options import DistilOptions

TAKES = "a function of (iteration, method, ema)"


def own_hooks(options: DistilOptions) -> list[Hook]:
    """The functions that ``hooks`` names. UserError for one that is not there, or that cannot be
    called with an iteration, a method and an average.
    """
    return [_hook(named) for named in options.hooks]


def _hook(named: str) -> Hook:
    found = function_named(named, "hooks", TAKES)
    try:
        inspect.signature(found).bind(1, None, None)
    except TypeError as error:
        raise UserError(
            f"hooks names {named}, which does not fit ({error}): write {TAKES}"
        ) from error
    except ValueError:  # of some builtins Python knows no signature: the call will tell
        pass
    hook: Hook = found
    return hook
