"""What students are told when they are measured: prompts, classes, or what the data holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..data import Data
from ..data.loading import GroupedData
from ..encoding import read_told
from ..errors import UserError
from ..teachers import LoadOptions, Teacher
from .data import ENCODED_AT_ONCE
from .options import DistilOptions, EvalOptions
from .validation import with_encoders

NEAR = 256  # samples that the diversity is taken over, at most
EACH = 4  # of them that are told the same, at least


@dataclass(frozen=True)
class Order:
    """What each of ``num`` samples is told, of ``count`` conditionings.

    The first ``kinds`` times ``each`` samples are those of the diversity: ``kinds`` conditionings
    in turn, each of them ``each`` times. Those behind them are told the others, in turn.
    """

    num: int
    kinds: int
    each: int
    places: Tensor  # (num,)

    @classmethod
    def of(cls, num: int, count: int) -> Order:
        """For at least EACH samples."""
        near = min(num, NEAR)
        kinds = min(count, near // EACH)
        each = near // kinds
        rest = (kinds + torch.arange(num - kinds * each)) % count
        return cls(num, kinds, each, torch.cat([torch.arange(kinds).repeat(each), rest]))

    @property
    def near(self) -> int:
        """How many samples the diversity is taken over."""
        return self.kinds * self.each


def most_told(num: int) -> int:
    """The conditionings that ``num`` samples are told where there are enough of them."""
    near = min(num, NEAR)
    return num - near + near // EACH


@dataclass(frozen=True)
class Told:
    """``count`` conditionings, read when they are needed; ``teacher`` is of their sample shape.

    ``texts`` are their prompts, None where these are not known.
    """

    source: str
    count: int
    read: Callable[[Sequence[int]], Conditioning]
    teacher: Teacher
    texts: tuple[str, ...] | None = None

    def prompts(self, places: Sequence[int]) -> list[str]:
        """Of samples that are told those conditionings."""
        assert self.texts is not None
        return [self.texts[place] for place in places]


def what_is_told(
    options: DistilOptions,
    own: EvalOptions,
    teacher: Teacher,
    data: Data,
    load: LoadOptions,
    num: int,
) -> Told:
    """Prompts that are given, or else classes, evenly spread, or else what the training data tells.

    UserError for prompts to a teacher that is told by classes.
    """
    most = most_told(num)
    if own.prompts:
        texts = list(read_told(teacher, own.prompts, limit=most)[0])
        return _encoded(own.prompts, texts, options, teacher, load)
    if options.validation_prompts:
        texts = list(options.validation_prompts)[:most]
        return _encoded("validation_prompts", texts, options, teacher, load)
    if teacher.is_told_by_text:
        return _of_data(data, teacher, most)
    classes = teacher.num_classes or 1
    count = min(classes, most)

    def encode(places: Sequence[int]) -> Conditioning:
        return teacher.encode([i * classes // count for i in places])

    return Told(f"{count} classes", count, encode, teacher)


def _encoded(
    source: str, texts: list[Any], options: DistilOptions, teacher: Teacher, load: LoadOptions
) -> Told:
    """Encoded now and held: the encoders may be loaded for them, and released."""
    encodes = with_encoders(options, teacher, load)
    parts = [
        encodes.encode(texts[i : i + ENCODED_AT_ONCE]).to("cpu")
        for i in range(0, len(texts), ENCODED_AT_ONCE)
    ]
    cond = Conditioning.cat(parts)
    words = tuple(own[0] if isinstance(own, tuple) else own for own in texts)  # of a first frame

    def read(places: Sequence[int]) -> Conditioning:
        return cond.select(torch.tensor(places))

    return Told(source, len(texts), read, teacher, words)


def _of_data(data: Data, teacher: Teacher, most: int) -> Told:
    """Conditionings of samples evenly spread over the data; of those of several shapes, of the
    shape that the teacher samples, or else of the commonest."""
    groups = data.groups if isinstance(data, GroupedData) else (range(len(data)),)
    if not len(data):
        raise UserError("the data is empty: there is nothing to measure students on")

    def shape(group: Sequence[int]) -> tuple[int, ...]:
        x0 = data.fetch([group[0]])[0]
        return teacher.sample_shape if x0 is None else tuple(x0.shape[1:])

    group = max(groups, key=lambda own: (shape(own) == teacher.sample_shape, len(own)))
    count = min(len(group), most)

    def fetch(places: Sequence[int]) -> Conditioning:
        return data.fetch([group[i * len(group) // count] for i in places])[1]

    sized = replace(teacher, sample_shape=shape(group))
    return Told(f"{count} conditionings of the data", count, fetch, sized)
