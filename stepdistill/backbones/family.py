"""A *family*: one kind of diffusers pipeline, how it is loaded, conditioned and exported.

An adapter is one class. Its teacher speaks x0 through a :class:`~stepdistill.denoisers.Denoiser`;
its students are folders of the very same stock pipeline class. The contract is proved by tests for
each family: the teacher's samples equal the stock pipeline's, and the stock pipeline run on an
exported student gives the trainer's own x0.

To write an adapter: a ``stepdistill.denoisers.Backbone`` that calls diffusers' own network, and a
class under ``stepdistill.backbones.latent.LatentFamily`` (or ``Family``) with it, a ``card``,
``sample_shape``, ``encode`` and ``null``; everything else has a default that you override where
the stock pipeline differs. ``stepdistill.backbones.sd`` is a short one. Call
``stepdistill.families.register(MyFamily())`` before anything is loaded, or name the class in an
entry point of the group ``stepdistill.families``: the commands then know the pipeline too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch
from packaging.version import Version
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..denoisers import Denoiser, Denoises, Guided
from ..errors import UserError
from ..plans import StepPlan

if TYPE_CHECKING:
    from ..data.buckets import Cropped
    from ..teachers import LoadOptions, Stored, Teacher


@dataclass(frozen=True)
class FamilyCard:
    """A row of ``stepdistill families``: names as diffusers has them.

    ``pipeline`` is the class that a teacher's folder names and that a student is exported as,
    ``network`` the class that is distilled, ``scheduler`` the one of an exported student.
    """

    name: str
    task: str
    pipeline: str
    network: str
    prediction: str
    scheduler: str

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


class Family(ABC):
    """What the library asks of an adapter. ``teacher`` is always one that :meth:`load` made.

    ``lora_targets`` are the layers a LoRA role adapts unless told otherwise. ``output_type`` is
    what the stock pipeline is asked for when a student is compared with the trainer, and
    ``passes_generator`` says whether it gives its generators to the scheduler's steps too.
    ``teacher_steps`` are those of :meth:`sample` unless told otherwise. Without
    ``samples_teachers`` the stock pipeline walks as students do, and a teacher is sampled by
    :meth:`sample` alone.
    ``max_tokens`` is the longest prompt that may be asked for, None where the stock pipeline's call
    has no such argument.
    """

    card: ClassVar[FamilyCard]
    lora_targets: ClassVar[tuple[str, ...]]
    output_type: ClassVar[str] = "latent"
    passes_generator: ClassVar[bool] = True
    teacher_steps: ClassVar[int] = 30  # where most pipelines' samples stop changing to the eye
    samples_teachers: ClassVar[bool] = True
    max_tokens: ClassVar[int | None] = None

    @abstractmethod
    def load(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        """The teacher in ``folder``; ``card`` is what stepdistill wrote there, {} for others'.

        ``folder`` may be one checkpoint file, which ``components.read_pipeline`` reads too.
        """

    def check_tokens(self, options: LoadOptions) -> None:
        """UserError for a ``max_tokens`` that the stock pipeline does not take."""
        if options.max_tokens is None:
            return
        if self.max_tokens is None:
            raise UserError(
                f"{self.card.pipeline} takes no length of its prompts: leave max_tokens out"
            )
        if options.max_tokens > self.max_tokens:
            raise UserError(
                f"{self.card.pipeline} takes prompts of at most {self.max_tokens} tokens: "
                f"max_tokens={options.max_tokens} is too many"
            )

    def load_without_encoders(
        self, folder: Path, card: dict[str, Any], options: LoadOptions, stored: Stored
    ) -> Teacher:
        """The teacher that is told by ``stored`` conditionings; here there is nothing to save."""
        return self.load(folder, card, options)

    def load_encoders(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        """A teacher that encodes and is not sampled: its network may have no weights."""
        return self.load(folder, card, options)

    def completed(self, teacher: Teacher) -> Teacher:
        """A teacher that was loaded without its encoders, with them."""
        return teacher

    @abstractmethod
    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        """Prompts (or class numbers) -> Conditioning, one row each."""

    @abstractmethod
    def check_plan(self, teacher: Teacher, plan: StepPlan) -> None:
        """UserError for a plan that the stock pipeline cannot be made to follow."""

    @abstractmethod
    def save(self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path) -> None:
        """Write a stock pipeline folder whose call with ``plan.steps`` steps follows ``plan``."""

    def save_lora(
        self, generator: Denoiser, teacher: Teacher, plan: StepPlan, folder: Path
    ) -> dict[str, dict[str, Any]]:
        """Write the adapters and ``scheduler/``: {file: arguments of load_lora_weights for it}.

        UserError for a family whose stock pipeline loads no LoRA.
        """
        raise UserError(
            f"{self.card.pipeline} cannot load LoRA weights: export the student whole, which has "
            "them merged"
        )

    def call(self, teacher: Teacher, prompts: Sequence[Any]) -> dict[str, Any]:
        """The arguments with which the stock pipeline samples a student, but for steps and seed."""
        return {**self.told(prompts), **self.settings(teacher)}

    def told(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """The stock pipeline's arguments for ``prompts``: class numbers, texts, None."""
        return {"prompt": list(prompts)}

    def settings(self, teacher: Teacher) -> dict[str, Any]:
        """The other arguments that a student's call needs: its size, no guidance."""
        return {}

    def counts(self, teacher: Teacher, plan: StepPlan) -> list[int]:
        """The numbers of steps that an exported student can be called with."""
        return plan.counts()

    def student(self, teacher: Teacher) -> Denoiser:
        """The teacher's own network (not a copy) in the form that the stock pipeline samples."""
        return teacher.denoiser

    def guide(
        self, teacher: Teacher, denoiser: Denoises, guidance_scale: float | Tensor
    ) -> Denoises:
        """``denoiser``, the teacher's or a role's, under guidance; 1 is off.

        ``guidance_scale`` (B,) is one for each sample. UserError for a teacher that has no null
        conditioning.
        """
        if isinstance(guidance_scale, float | int) and guidance_scale == 1:
            return denoiser
        if teacher.null_cond is None:
            raise UserError(
                f"guidance_scale={guidance_scale} needs a teacher with a null conditioning, and "
                f"{teacher.name} has none: set guidance_scale=1"
            )
        return Guided(denoiser, guidance_scale, teacher.null_cond)

    @abstractmethod
    def sample(
        self, teacher: Teacher, denoiser: Denoises, z: Tensor, cond: Conditioning, steps: int | None
    ) -> Tensor:
        """x0 from unit noise ``z`` by the sampler the model is known by; ``denoiser`` is the
        teacher, or the teacher under guidance.
        """

    def guidance_call(self, pipeline: Any, guidance_scale: float) -> dict[str, Any]:
        """The stock pipeline's arguments for ``guidance_scale``, which is 1 where it is off."""
        return {"guidance_scale": guidance_scale}

    def told_guidance(self, pipeline: Any) -> float | None:
        """The guidance scale that a student's network takes as a number; None if it takes none."""
        return None

    @property
    def is_told_by_text(self) -> bool:
        """Whether its conditionings are prompts, not classes."""
        return self.card.task in ("text-to-image", "text-to-video", "image-to-video")

    def classes(self, pipeline: Any) -> int | None:
        """The number of class labels that the pipeline's network knows, None if it takes none."""
        return None

    def examples(self, teacher: Teacher, count: int) -> list[Any]:
        """``count`` prompts to try a model with."""
        return [EXAMPLES[i % len(EXAMPLES)] for i in range(count)]

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        """What the stock pipeline returns, asked for ``output_type``, where its last x0 is this."""
        return x0

    def stock_noise(self, teacher: Teacher, count: int, generator: torch.Generator) -> Tensor:
        """Noise like x0 as the stock pipeline's scheduler draws it from one generator."""
        return torch.randn(count, *teacher.sample_shape, generator=generator)

    def decode(self, teacher: Teacher, x0: Tensor) -> Tensor:
        """x0 -> pixels in [-1, 1]: (B, C, H, W), or (B, C, frames, H, W)."""
        return x0

    def encode_images(self, teacher: Teacher, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> x0."""
        return pixels

    def pixel_shape(self, teacher: Teacher) -> tuple[int, ...]:
        """(channels, height, width) of what :meth:`encode_images` takes for the teacher's x0."""
        return teacher.sample_shape

    def takes_size(self, teacher: Teacher, height: int, width: int) -> bool:
        """Whether the network samples images of so many pixels too; by default of its own alone."""
        return (height, width) == self.pixel_shape(teacher)[1:]

    def size_cond(self, teacher: Teacher, images: Sequence[Cropped]) -> Conditioning:
        """What the model is told of the sizes of images, in place of those it is sampled with."""
        return Conditioning.empty(len(images))

    def student_weights(self, teacher: Teacher, student: Denoiser) -> dict[str, Tensor]:
        """The weights of a student's exported folder, by their names in the teacher's network."""
        return student.backbone.network.state_dict()


EXAMPLES = ("a red fox in the snow", "an old lighthouse at dusk", "a bowl of oranges", "a blue car")


def dtype_keyword() -> str:
    """What ``from_pretrained`` calls the dtype of the weights, which has changed."""
    return "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"


def dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    """The argument of ``from_pretrained`` that loads weights in ``dtype``.

    Autoencoders stay in float32: several overflow in half precision.
    """
    parts = dtype if dtype == torch.float32 else {"default": dtype, "vae": torch.float32}
    return {dtype_keyword(): parts}


def frozen(module: nn.Module) -> Any:
    """``module`` in eval mode without a trainable weight."""
    return module.eval().requires_grad_(False)
