"""The weights of extractors and scorers, as a person names them: NAME=PATH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import UserError
from ...metrics.extractors import EXTRACTORS
from ...metrics.scorers import SCORERS
from ...parser import nearest
from ..protocols.general import TEXT_SCORES


def weighed() -> dict[str, str]:
    """What --weights may name -> the network it is of: networks, and the metrics of one alone."""
    bundled = ("digits", "scenes")
    networks = [*(name for name in EXTRACTORS if name not in bundled), *SCORERS, "lpips"]
    metrics = {name: scorer for name, (scorer, _) in TEXT_SCORES.items()}
    return {**{name: name for name in networks}, **metrics, "lpips_diversity": "lpips"}


def weights_of(given: Sequence[str]) -> Mapping[str, str]:
    """NAME=PATH -> {network: path}; Inception's serve both of its resizes, unless told otherwise.

    UserError for another form, and for a name of no network.
    """
    known, found = weighed(), dict[str, str]()
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or not path:
            raise UserError(f"weights are given as NAME=PATH, such as inception=FILE, got {one}")
        if name not in known:
            near = nearest(name, known)
            hint = f" Did you mean {near}?" if near else ""
            listed = ", ".join(dict.fromkeys(known.values()))
            raise UserError(f"there are no weights {name}.{hint} They are named {listed}")
        found[known[name]] = path
    if "inception" in found:
        found.setdefault("inception-tf", found["inception"])
    return found


def weights_for(features: str, given: str | None) -> str | None:
    """--weights of a command with one extractor: FILE, or NAME=FILE as other commands take it.

    UserError for the name of another network.
    """
    name, equals, _ = (given or "").partition("=")
    if given is None or not equals or name not in weighed():
        return given
    named = weights_of([given])
    if features not in named:
        raise UserError(f"--weights {given} is not of {features}, which is measured on")
    return named[features]
