"""The noise-image pairs of cells whose method needs them: made once a seed, by ``precompute``."""

from __future__ import annotations

from pathlib import Path

from ..data.captioned_digits import CaptionedDigits
from ..files import whole
from ..precomputing import PrecomputeOptions, precompute_folder
from ..sources import folder_of
from ..teachers import LoadOptions, load_encoders
from .tasks import Asked

FIRST_SEED = 2**40  # of the pairs' noise: students are measured on seeds from 0 on
APART = 2**24  # between the pairs of two seeds
CAPTIONS = 10_000  # the first of the captioned digits
BATCH = 250


def pairs_folder(asked: Asked, seed: int) -> Path:
    """Where the pairs of a seed lie, made now if they are not there; a killed making goes on."""
    here = asked.output / asked.teacher
    here.mkdir(parents=True, exist_ok=True)
    options = PrecomputeOptions(
        teacher=asked.teacher,
        output=str(here / f"pairs-{seed}"),
        prompts=_prompts(asked, here),
        pairs=asked.pairs,
        guidance_scale=asked.world.bar()["guidance_scale"],
        seed=FIRST_SEED + APART * (seed % APART),
        batch_size=BATCH,
    )
    precompute_folder(options, LoadOptions())
    return Path(options.output)


def _prompts(asked: Asked, folder: Path) -> str:
    """Captions of the world's own data, in a file; "" for a teacher that is told by classes."""
    if not load_encoders(folder_of(asked.teacher)).is_told_by_text:
        return ""
    file = folder / "prompts.txt"
    if not file.exists():
        data = CaptionedDigits(count=CAPTIONS)
        with whole(file) as aside:
            captions = (data.example(i).caption.text for i in range(len(data)))
            aside.write_text("".join(f"{text}\n" for text in captions))
    return str(file)
