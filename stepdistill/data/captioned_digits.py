"""Captioned pictures without a download: scenes of real handwritten digits, composed by index.

All 1,797 source images are used for training and for measuring alike: the world is small, and its
distance asks how close a model comes to it, not how well it goes beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..conditioning import Conditioning
from .captions import caption
from .picks import Picks
from .rendering import render
from .scenes import Scene, Statement, draw_statement

COUNT = 50_000  # scenes of the data set
EVALUATION_PROMPTS = 500


@dataclass(frozen=True)
class Caption:
    """A sentence and what it says."""

    text: str
    said: Statement


@dataclass(frozen=True)
class Example:
    """A caption and a scene of which it is true."""

    caption: Caption
    scene: Scene


Encode = Callable[[Sequence[Example]], Conditioning]


def labels(examples: Sequence[Example]) -> Conditioning:
    """The classes of the scenes and of what is said of them, each (B, 7)."""
    scene = torch.stack([example.scene.labels for example in examples])
    said = torch.stack([example.caption.said.labels for example in examples])
    return Conditioning({"scene": scene, "said": said})


@dataclass(frozen=True)
class CaptionedDigits:
    """Pictures x0 (B, 3, 32, 32) in [-1, 1]; sample i is a function of (seed, i).

    ``encode`` makes their conditioning: class labels, or a text encoder's states.
    """

    encode: Encode = labels
    count: int = COUNT
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        """The caption and the scene at ``index``."""
        picks = self._picks(index)
        said = draw_statement(picks)
        return Example(Caption(caption(said, picks), said), said.scene(picks))

    def fetch(self, indices: list[int]) -> tuple[Tensor, Conditioning]:
        """The pictures at ``indices``, and what ``encode`` makes of their examples."""
        examples = [self.example(index) for index in indices]
        pictures = [
            render(example.scene, self._picks(index))
            for index, example in zip(indices, examples, strict=True)
        ]
        return torch.stack(pictures), self.encode(examples)

    def _picks(self, index: int) -> Picks:
        return Picks("captioned digits", self.seed, index)


@cache
def evaluation_prompts() -> tuple[Caption, ...]:
    """The prompts that samples are measured on: 500 captions drawn as the data set's are."""
    drawn = CaptionedDigits(count=EVALUATION_PROMPTS, seed=-1)
    return tuple(drawn.example(index).caption for index in range(len(drawn)))


def real_pictures(prompts: Sequence[Caption], seeds: range) -> Tensor:
    """Pictures (B, 3, 32, 32) of which ``prompts`` are true, drawn as in the data set.

    Negative seeds are the reference's.
    """
    each = [Picks("real picture", seed) for seed in seeds]
    pairs = zip(prompts, each, strict=True)
    return torch.stack([render(prompt.said.scene(picks), picks) for prompt, picks in pairs])
