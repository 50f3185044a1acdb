"""The weights of extractors and scorers, as a person names them: NAME=PATH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import UserError
from ..metrics.extractors import EXTRACTORS
from ..metrics.scorers import SCORERS
from ..parser import nearest

NAMES = (*EXTRACTORS, *SCORERS, "lpips")


def named_weights(given: Sequence[str]) -> Mapping[str, str]:
    """NAME=PATH -> {name: path}. UserError for another form, and a name that nothing has."""
    found = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or not path:
            raise UserError(f"weights are given as NAME=PATH, such as inception=FILE, got {one}")
        if name not in NAMES:
            near = nearest(name, NAMES)
            hint = f" Did you mean {near}?" if near else ""
            raise UserError(
                f"weights {one} are of no extractor or scorer.{hint} There are: {', '.join(NAMES)}"
            )
        found[name] = path
    return found
