"""What an evaluation takes from its protocol, and what from the command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...assets import Asset, check, find
from ...errors import UserError
from ...metrics.features import Features
from ...parser import nearest
from ..measures.image_metrics import statistics_alone
from ..measures.measure import Measure
from ..models.prompt_files import prompts_in
from ..models.subject import Subject
from ..models.told import NOTHING, Told, prompts_in_turn
from ..protocols import Protocol
from ..protocols.protocol import Reference
from ..reading.measuring import Measured, Reading, Want
from ..references.reference import load_reference
from ..references.stored import check_one_each

BATCH = 64


@dataclass(frozen=True)
class Asked:
    """What a person may set of an evaluation; None takes the protocol's."""

    output: Path
    num: int | None = None
    seed: int = 0
    repeats: int = 1
    batch_size: int = BATCH
    metrics: tuple[str, ...] = ()
    prompts: str | None = None
    reference: tuple[str, ...] = ()
    skip_corrupt: bool = False  # of the reference
    weights: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    replicates: int | None = None

    @property
    def parts(self) -> Path:
        """The folder of work, beside the output until the record is written."""
        return self.output.with_name(self.output.name + ".parts")


def chosen(protocol: Protocol, names: Sequence[str]) -> list[Measure]:
    """The measures ``names``, by default the protocol's own. UserError lists what there is."""
    for name in names:
        if name not in protocol.measures:
            near = nearest(name, protocol.measures)
            hint = f" Did you mean {near}?" if near else ""
            listed = ", ".join(protocol.measures)
            raise UserError(f"{protocol.name} has no metric {name}.{hint} It has: {listed}")
    return [protocol.measures[name] for name in names or protocol.default]


def told_by(protocol: Protocol, subject: Subject, asked: Asked) -> tuple[Told, int]:
    """(what its samples are told, how many a repeat). UserError for a model of another kind."""
    model = subject.model
    if model.is_told_by_text:
        if protocol.kind == "class":
            raise UserError(
                f"{protocol.name} is for models of classes or of nothing, and {subject.source} is "
                "told by text: take one of the text protocols, or custom"
            )
        prompts = prompts_of(protocol, asked)
        return prompts_in_turn(prompts), asked.num or protocol.num or len(prompts)
    if protocol.kind == "text" or asked.prompts is not None:
        raise UserError(f"{subject.source} is not told by text: {protocol.name} cannot prompt it")
    num = asked.num or protocol.num
    if num is None:
        raise UserError(f"{protocol.name} has no count of its own: give --num")
    return NOTHING if protocol.labels is None else protocol.labels(model.num_classes, num), num


def prompts_of(protocol: Protocol, asked: Asked) -> tuple[str, ...]:
    """The file that is asked for, else the protocol's. UserError if there is none."""
    if isinstance(protocol.prompts, tuple):
        if asked.prompts is not None:
            raise UserError(f"{protocol.name} measures its own prompts: leave --prompts out")
        return protocol.prompts
    if asked.prompts is not None:
        _check(protocol.prompts, asked.prompts)
        return prompts_in(asked.prompts)
    if protocol.prompts is None:
        raise UserError(f"{protocol.name} has no prompts of its own: give --prompts FILE")
    return prompts_in(str(find(protocol.prompts)))


def opened(protocol: Protocol, asked: Asked, measures: Sequence[Measure]) -> list[Reference]:
    """The references that are asked for, else the protocol's own; none if nothing is compared."""
    if not any(measure.compares for measure in measures):
        return []
    how = Reading(skip_corrupt=asked.skip_corrupt)
    if asked.reference:
        for one in asked.reference:
            _check(protocol.reference, one)
        return [load_reference(Path(one), how, asked.parts) for one in asked.reference]
    if isinstance(protocol.reference, Asset):
        return [load_reference(place_of(protocol.reference), how, asked.parts)]
    if protocol.reference is None:
        raise UserError(f"{protocol.name} has no reference of its own: give --reference")
    return [protocol.reference()]


def place_of(asset: Asset) -> Path:
    """A reference's file or folder of images. UserError if there is none."""
    named = os.environ.get(asset.variable)
    return Path(named) if named and Path(named).is_dir() else find(asset)


def compared(
    measures: Sequence[Measure], given: Sequence[Reference], views: Mapping[str, Features]
) -> dict[str, Measured]:
    """The first of ``given`` that is of a view, by the key of each view that is compared; images
    are measured now, each read once. UserError for a view without one.
    """
    keep: dict[str, list[str]] = {}
    for measure in measures:
        if measure.compares:
            keep.setdefault(measure.seen.key, []).extend([measure.name] * measure.keeps[1])
    wants = {key: Want(views[key], bool(names)) for key, names in keep.items()}
    found: dict[str, Measured] = {}
    reasons: list[str] = []
    for reference in given:
        left = {key: want for key, want in wants.items() if key not in found}
        for key, own in _taken(reference, left, reasons).items():
            if keep[key] and own.features is None:
                path = own.record["path"]
                reasons.append(f"{keep[key][0]}: {statistics_alone(path)}")
            else:
                found[key] = own
    if len(found) < len(wants):
        raise UserError("; ".join(reasons))
    check_one_each(found)
    return found


def _taken(
    reference: Reference, wants: Mapping[str, Want], reasons: list[str]
) -> dict[str, Measured]:
    """What a reference gives of ``wants``: all at once, else those that it is of."""
    try:
        return dict(zip(wants, reference.measure([*wants.values()]), strict=True))
    except UserError as error:
        if len(wants) == 1:
            reasons.append(str(error))
            return {}
    alone = [_taken(reference, {key: want}, reasons) for key, want in wants.items()]
    return {key: own for part in alone for key, own in part.items()}


def _check(asset: object, given: str) -> None:
    """UserError for a file of the published name that has not the published hash."""
    if isinstance(asset, Asset) and Path(given).is_file():
        check(asset, Path(given))


def replicates_of(protocol: Protocol, asked: Asked) -> int:
    """Of the bootstrap of a Frechet distance's standard error."""
    return protocol.replicates if asked.replicates is None else asked.replicates
