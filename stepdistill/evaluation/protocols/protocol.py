"""A protocol: everything that decides a published number, but for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from typing import Protocol as Protocol_

from ...assets import Asset
from ..measures.measure import Measure
from ..models.told import Told
from ..reading.measuring import Measured, Want


class Reference(Protocol_):
    """What samples are compared with."""

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Through each of the extractors. UserError for one that it is not of."""


@dataclass(frozen=True)
class Protocol:
    """How many samples of what, compared with what, by which measures.

    ``source`` is whose numbers it stands beside and ``notes`` say what is known to differ from
    theirs. ``num`` is the published count, ``kind`` what models it is for. ``labels`` chooses the
    classes of ``num`` samples of a model of K classes, or of None; ``prompts`` is the file of
    prompts where they are told by text. ``reference`` is a file or folder that someone must have,
    or one that comes along. ``image_size`` is the side of the samples, None for any. ``measures``
    are all that may be asked for by name, ``default`` those that are measured unless told
    otherwise. ``minimum_of`` is the number of repeats whose least value the source reports;
    ``replicates`` of a bootstrap are taken by default.
    """

    name: str
    about: str
    source: str
    num: int | None
    kind: Literal["class", "text", "any"]
    measures: Mapping[str, Measure]
    default: tuple[str, ...]
    labels: Callable[[int | None, int], Told] | None = None
    prompts: Asset | tuple[str, ...] | None = None
    reference: Asset | Callable[[], Reference] | None = None
    image_size: int | None = None
    minimum_of: int = 1
    replicates: int = 0
    notes: tuple[str, ...] = field(default=())
