"""The alignment of a student's pictures with their prompts: SwiftBrush v2's clamped CLIP loss.

(Dao et al. 2024, arXiv:2408.14176.) Beside any matching of distributions,

    L_align = w E[ max(0, tau - cos(image(decode(x0)), text(prompt))) ]

through the decoder and the image tower, whose weights do not learn. The clamp leaves pictures alone
that agree well enough; w falls linearly to 0, so that the matching has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..decoding import Decoder, device_of, pictures
from ..errors import UserError
from ..losses import clamped_alignment
from ..teachers import Teacher
from .base import Batch, Loss

if TYPE_CHECKING:  # torchvision and transformers, which take a while
    from ..towers import Towers


@dataclass(frozen=True)
class AlignmentOptions:
    """The paper's tau; its weight is 0.1, over the whole run."""

    align_weight: float = 0.0  # of the images' alignment with their prompts, at the start; 0: off
    align_decay: int = 0  # iterations over which it falls linearly to 0: as published, max_steps
    align_tau: float = 0.37  # the cosine that is enough
    align_scorer: str = ""  # CLIP: a folder or hub id, or open_clip's file; default: ViT-L/14
    align_architecture: str = ""  # of open_clip's list, where align_scorer is a file of its weights

    def check_alignment(self) -> None:
        """UserError for values that cannot be meant."""
        if not 0 <= self.align_weight < math.inf:
            raise UserError(f"align_weight must be at least 0, got {self.align_weight}")
        if not -1 <= self.align_tau <= 1:
            raise UserError(f"align_tau is a cosine, in [-1, 1], got {self.align_tau}")
        if self.align_weight > 0 and self.align_decay < 1:
            raise UserError(
                f"align_weight={self.align_weight} needs align_decay, the iterations over which it "
                "falls to 0: as published, set it to max_steps"
            )

    @property
    def decodes(self) -> bool:
        """Whether the teacher's autoencoder is called in training."""
        return self.align_weight > 0

    def alignment(self, teacher: Teacher) -> Alignment | None:
        """The loss, None where it is off. UserError where the CLIP is not to be had."""
        if self.align_weight == 0:
            return None
        from ..towers import load_towers

        towers: Any = load_towers(self.align_scorer, self.align_architecture, device_of(teacher))
        return Alignment(Decoder(teacher), towers, self)


class Alignment(nn.Module):
    """The loss on x0 that ``decoder`` makes pixels of, in [-1, 1], and ``towers`` compare."""

    def __init__(self, decoder: nn.Module, towers: Towers, options: AlignmentOptions) -> None:
        super().__init__()
        self.decoder, self.towers, self.options = decoder, towers, options

    def forward(self, x0: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,): max(0, tau - cos), and 0 where there is no text. A video's is its frames' mean."""
        gaps = x0.new_zeros(len(texts))
        told = [i for i, text in enumerate(texts) if text.strip()]
        if not told:
            return gaps
        index = torch.tensor(told, device=x0.device)
        pixels = self.decoder(x0[index])
        image = self.towers.image_features(pictures(pixels))
        text = self.towers.text_features([texts[i] for i in told])
        text = text.repeat_interleave(len(image) // len(text), 0)
        found = clamped_alignment(image, text, self.options.align_tau)
        return gaps.index_put((index,), found.reshape(len(told), -1).mean(1).to(gaps))

    def weight(self, iteration: int) -> float:
        """Of an iteration, from 1: align_weight at the first, 0 from align_decay + 1 on."""
        left = 1 - (iteration - 1) / self.options.align_decay
        return self.options.align_weight * max(left, 0.0)

    def beside(self, loss: Loss, x0: Tensor, batch: Batch) -> Loss:
        """``loss`` with that of x0, the student's; UserError for data without prompts."""
        weight = self.weight(batch.draws.iteration)
        logs = {**loss.logs, "alignment_weight": torch.tensor(weight, device=x0.device)}
        if weight == 0:
            return Loss(loss.value, logs)
        if batch.texts is None:
            raise UserError(
                "align_weight compares images with their prompts, and the data does not know any: "
                "give --prompts or captioned samples, or set align_weight=0"
            )
        gap = self(x0, batch.texts).mean()
        return Loss(loss.value + weight * gap, {**logs, "alignment": gap.detach()})
