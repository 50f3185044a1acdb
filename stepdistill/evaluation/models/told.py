"""What each sample of an evaluation is told: a class, a prompt, or nothing.

It depends on the sample's place and seed alone, never on a batch or a process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ...data.digits import stratified_labels
from ...draws import key


@dataclass(frozen=True)
class Told:
    """``of(place, seed)`` is what sample ``place`` of a repeat is told, ``words`` say how it is
    chosen. ``of`` is None for a model that is told nothing. ``in_strata`` says that each class or
    prompt is told to a fixed number of samples.
    """

    words: str
    of: Callable[[int, int], Any] | None
    in_strata: bool = False

    def batch(self, places: Sequence[int], seeds: Sequence[int]) -> list[Any] | None:
        """What the samples of a batch are told."""
        if self.of is None:
            return None
        return [self.of(place, seed) for place, seed in zip(places, seeds, strict=True)]

    def sha256(self, num: int, seed: int) -> str | None:
        """Of all that the ``num`` samples from ``seed`` on are told, one JSON value a line."""
        if self.of is None:
            return None
        running = sha256()
        for place in range(num):
            running.update(json.dumps(self.of(place, seed + place)).encode() + b"\n")
        return running.hexdigest()


NOTHING = Told("nothing", None)


def labels_by_seed(num_classes: int) -> Told:
    """A class drawn uniformly by the image's own seed, as EDM and ADM draw theirs."""
    return Told(
        f"one of {num_classes} classes, drawn by the image's seed",
        lambda place, seed: key("class of the image with seed", seed) % num_classes,
    )


def labels_in_proportion(proportions: Tensor, num: int) -> Told:
    """Classes in exact proportion to ``proportions`` (K,), mixed evenly."""
    labels = stratified_labels(proportions, num).tolist()
    return Told("classes in the data's proportions", lambda place, seed: labels[place], True)


def labels_equally_often(num_classes: int, num: int) -> Told:
    """Each of K classes equally often, mixed evenly."""
    labels = stratified_labels(torch.ones(num_classes), num).tolist()
    return Told(f"{num_classes} classes equally often", lambda place, seed: labels[place], True)


def prompts_in_turn(prompts: Sequence[str]) -> Told:
    """Prompt i mod P for sample i."""
    words = f"{len(prompts):,} prompts in turn"
    return Told(words, lambda place, seed: prompts[place % len(prompts)], True)
