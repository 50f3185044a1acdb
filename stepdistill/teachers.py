"""``load_teacher``: a built-in name, a diffusers folder, a file or a hub id -> a frozen Teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from . import families
from .backbones.family import Family
from .conditioning import Conditioning
from .denoisers import Denoiser, Denoises
from .errors import UserError
from .errors import first_line as first_line
from .plans import StepPlan
from .quiet import truncation_asked_for
from .single_file import described_in
from .sources import CARD as CARD
from .sources import WORLDS as WORLDS
from .sources import built_in_worlds as built_in_worlds
from .sources import folder_of as folder_of
from .sources import read_card as read_card
from .sources import read_model_index as read_model_index

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadOptions:
    """How a teacher is loaded, and the size of the samples it is distilled at.

    Args:
        dtype: of the frozen weights: float32, bfloat16 or float16
        height: pixels; default: the model's own
        width: pixels; default: the model's own
        frames: of a video; default: the pipeline's own
        max_tokens: of a prompt, at most what the family takes; default: the pipeline's own
        encoders: where the text encoders and the autoencoder live, the "cpu" or the "device" that
            trains; "device" encodes faster and takes their memory there
        config: of a teacher in one .safetensors file: the diffusers folder or hub id with the
            configurations, tokenizers and scheduler of its architecture, and with the encoders'
            weights if the file has none; default: the one that diffusers goes by, from the hub
    """

    weights: ClassVar[bool] = True  # whether they are read, not their shapes alone

    dtype: str = "float32"
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    max_tokens: int | None = None
    encoders: Literal["cpu", "device"] = "cpu"
    config: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        for name in ("height", "width", "frames", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class ShapesOnly(LoadOptions):
    """The same, for networks on the meta device: made from their config files, without weights."""

    weights: ClassVar[bool] = False


@dataclass(frozen=True)
class Stored:
    """What a precomputed folder holds in place of a teacher's encoders, which are then not loaded.

    ``null_cond`` is the Teacher's, ``shown`` are the conditionings of some of its examples. Without
    ``decodes`` the autoencoder has no weights either. ``smallest`` is the shape of x0 whose sides
    are the shortest in the folder, None if it holds no x0.
    """

    null_cond: Conditioning | None
    shown: Conditioning
    decodes: bool = False
    smallest: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Teacher:
    """A frozen model and what its family knows: how to condition it, and how to export a student.

    ``denoiser`` is in eval mode with no trainable weight; it is never prepared or wrapped.
    ``null_cond`` is the conditioning of one unconditional sample, None if the model has none;
    ``num_classes`` is None for a model that is told something else than a class. ``pipeline`` is
    the stock diffusers pipeline whose network ``denoiser`` calls, and ``source`` what loads it: a
    folder's or a file's whole path, or a hub id. ``prompts`` are those that its card gives to try
    it with. A teacher with ``stored`` conditionings has no encoders.
    """

    name: str
    family: Family
    denoiser: Denoiser
    sample_shape: tuple[int, ...]
    null_cond: Conditioning | None
    num_classes: int | None
    pipeline: Any = None
    source: str = ""
    options: LoadOptions = LoadOptions()
    stored: Stored | None = None
    prompts: tuple[str, ...] = ()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Any]) -> Conditioning:
        """Prompts, or class numbers -> Conditioning. UserError without the encoders they need."""
        if not self.has_encoders:
            raise UserError(
                f"{self.name} was loaded without its text encoders, for precomputed samples: load "
                "it whole to encode prompts"
            )
        with truncation_asked_for(self.pipeline, self.options.max_tokens):
            return self.family.encode(self, prompts)

    @property
    def has_encoders(self) -> bool:
        """Whether it can encode what it is told by; classes need no encoder."""
        return self.stored is None or not self.is_told_by_text

    def whole(self) -> Teacher:
        """With its encoders and its autoencoder's weights, loaded if they were left out."""
        return self if self.stored is None else self.family.completed(self)

    def probe(self) -> Conditioning:
        """The conditioning of one sample, to find shapes with."""
        return self.shown(1)

    @property
    def smallest_shape(self) -> tuple[int, ...]:
        """Of the samples it is distilled on: a GAN's head is built for it and takes larger ones."""
        return (self.stored and self.stored.smallest) or self.sample_shape

    def shown(self, count: int) -> Conditioning:
        """The conditionings of ``examples(count)``; stored ones repeat."""
        if self.stored is None or self.has_encoders:
            return self.encode(self.examples(count))
        return self.stored.shown.select(torch.arange(count) % self.stored.shown.batch_size)

    def examples(self, count: int) -> list[Any]:
        """``count`` prompts, or class numbers, to try the model with."""
        if self.prompts:
            return [self.prompts[i % len(self.prompts)] for i in range(count)]
        return self.family.examples(self, count)

    def guided(self, guidance_scale: float | Tensor) -> Denoises:
        """The teacher under guidance, 1 is off, (B,) one for each sample; UserError if it cannot be
        guided."""
        return self.guide(self.denoiser, guidance_scale)

    def guide(self, denoiser: Denoises, guidance_scale: float | Tensor) -> Denoises:
        """Another ``denoiser`` of this family, a critic's, under guidance as :meth:`guided`."""
        return self.family.guide(self, denoiser, guidance_scale)

    def student(self) -> Denoiser:
        """The same network (not a copy) in the form that this family's pipeline samples."""
        return self.family.student(self)

    def check_plan(self, plan: StepPlan) -> None:
        """UserError, before any training, for a plan that ``save_student`` cannot export."""
        self.family.check_plan(self, plan)

    def save_student(self, generator: Denoiser, plan: StepPlan, folder: Path) -> None:
        """Write ``generator`` as a stock diffusers folder that follows ``plan``."""
        self.family.save(generator, self, plan, folder)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 -> pixels in [-1, 1], with a gradient where x0 has one."""
        return self.family.decode(self, x0)

    def encoders(self) -> dict[str, nn.Module]:
        """The pipeline's other networks, by component: text encoders, an autoencoder."""
        own = {id(module) for module in self.denoiser.modules()}
        parts = self.pipeline.components.items() if self.pipeline is not None else ()
        return {k: v for k, v in parts if isinstance(v, nn.Module) and id(v) not in own}

    @property
    def is_told_by_text(self) -> bool:
        """Whether its conditionings are prompts, not classes."""
        return self.family.is_told_by_text

    @property
    def lora_targets(self) -> list[str]:
        """The layers a LoRA role adapts unless told otherwise."""
        return list(self.family.lora_targets)


def load_encoders(source: str | Path, options: LoadOptions | None = None) -> Teacher:
    """As :func:`load_teacher`, to encode with: the network has a config, and maybe no weights."""

    given = options or LoadOptions()

    def load(family: Family, folder: Path) -> Teacher:
        return family.load_encoders(folder, read_card(folder), given)

    return _load(source, load, given)


def load_teacher(
    source: str | Path,
    device: torch.device | str = "cpu",
    options: LoadOptions | None = None,
    stored: Stored | None = None,
) -> Teacher:
    """Load a teacher by built-in name, folder, file or hub id; its network goes onto ``device``.

    On "meta" no weights are read (nor fetched): the networks are shapes from their config files.
    With ``stored`` conditionings its encoders stay out of memory. One ``.safetensors`` file is
    described by ``options.config``. Raises UserError if it is missing, damaged, neither in
    diffusers format nor a file that diffusers converts, or of an unknown family.
    """
    given = options or LoadOptions()
    if torch.device(device).type == "meta":
        given = ShapesOnly(**asdict(given))

    def load(family: Family, folder: Path) -> Teacher:
        card = read_card(folder)
        if stored is None:
            return family.load(folder, card, given)
        teacher = family.load_without_encoders(folder, card, given, stored)
        return replace(teacher, stored=stored)

    teacher = _load(source, load, given)
    teacher.denoiser.to(device)
    if given.encoders == "device" and given.weights:
        for encoder in teacher.encoders().values():
            encoder.to(device)
    return teacher


def _load(
    source: str | Path, load: Callable[[Family, Path], Teacher], given: LoadOptions
) -> Teacher:
    folder = folder_of(str(source), given.weights)
    index = read_model_index(described_in(folder, given.config))
    family = families.of_pipeline(str(index.get("_class_name")), str(source))
    try:
        teacher = load(family, folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        why = "its files look damaged" if given.weights else "its config files are not enough"
        raise UserError(f"{source} could not be loaded, {why}: {first_line(error)}") from error
    hub = folder != Path(source) and str(source) not in built_in_worlds()
    return replace(teacher, name=str(source), source=str(source) if hub else str(folder.resolve()))
