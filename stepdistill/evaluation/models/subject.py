"""The model that is measured: a student of ours, a teacher, or any other diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ... import families
from ...errors import UserError, first_line
from ...metrics.features import digest
from ...plans import StepPlan
from ...sources import CARD, folder_of, read_model_index
from ...students import SampledByFamily, Student, load_student
from .foreign import load_foreign

NETWORKS = ("unet", "transformer", "transformer_2", "prior")  # what a network call is a call of
WEIGHTS = (".safetensors", ".bin")
CONFIGS = (".json", ".txt", ".model", ".py")  # scheduler, tokenizer, and what travels with them
SHAPE = {"height": "height", "width": "width", "num_frames": "frames"}  # argument -> option
Role = Literal["student", "teacher", "other"]


class Sampled(Protocol):
    """What an evaluation asks of a model; ``students.Student`` is one."""

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline."""

    @property
    def plan(self) -> StepPlan | None:
        """The trained plan of a student of ours."""

    @property
    def num_classes(self) -> int | None:
        """How many classes it may be told, None if it is not told one."""

    @property
    def is_told_by_text(self) -> bool:
        """Whether it samples prompts."""

    def steps(self, asked: int | None) -> int:
        """The number of steps that it is called with. UserError for one that it has not."""

    def guidance(self, scale: float | None, anyway: bool = False) -> dict[str, Any]:
        """The arguments for a guidance scale. UserError where it does not apply."""

    def is_called_alone(self, steps: int) -> bool:
        """Whether each sample takes a call of its own, so as not to depend on the batch."""

    def sample(
        self,
        told: Sequence[Any] | None,
        seeds: Sequence[int],
        steps: int,
        batch_size: int = 128,
        alone: bool = True,
        **more: Any,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Subject:
    """A loaded model and how it is called; ``told`` goes to each call as it is.

    ``shape`` are the arguments for the size of a sample, where one was asked for. ``unchecked``
    says that its pipeline had a safety checker, which would show black images instead of some.
    """

    source: str
    folder: Path
    model: Sampled
    role: Role
    steps: int
    guidance: dict[str, Any]
    dtype: str
    shape: Mapping[str, int] = field(default_factory=dict)
    unchecked: bool = False

    def sample(self, told: Sequence[Any] | None, seeds: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]; of videos (B, C, frames, H, W) the middle frames.

        UserError for a shape that its pipeline refuses.
        """
        given = {**self.guidance, **self.shape}
        try:
            x0 = self.model.sample(told, seeds, self.steps, len(seeds), **given)
        except ValueError as error:
            if not self.shape:
                raise
            asked = ", ".join(f"{SHAPE[name]} {value}" for name, value in self.shape.items())
            raise UserError(
                f"{self.source} cannot be sampled at {asked}: {first_line(error)}"
            ) from error
        return x0[:, :, x0.shape[2] // 2] if x0.ndim == 5 else x0

    @property
    def of_videos(self) -> bool:
        """Whether its samples are videos."""
        return "num_frames" in inspect.signature(self.model.pipeline.__call__).parameters

    @property
    def pipelines_own_steps(self) -> int | None:
        """The number that its pipeline takes unless told otherwise; None where it is not called."""
        if isinstance(self.model, SampledByFamily):
            return None
        found: int | None = _default(self.model.pipeline.__call__, "num_inference_steps")
        return found

    @property
    def guidance_scale(self) -> float | None:
        """The scale that it samples with: what was asked for, or its pipeline's default; None for
        a student, whose guidance is inside it, and for pipelines without.
        """
        if self.guidance or self.role == "student":
            found = self.guidance.get("guidance_scale")
        else:
            found = _default(self.model.pipeline.__call__, "guidance_scale")
        return None if found is None else float(found)

    @property
    def notes(self) -> list[str]:
        """What is to be known of how it is sampled."""
        own, said = self.pipelines_own_steps, list[str]()
        if self.role == "other" and isinstance(self.model, Student):
            said.append(
                "taken for a consistency model, whose own pipeline is called: a teacher of EDM's "
                f"kind has {CARD} beside model_index.json, as trainers/teacher.py writes it"
            )
        if self.role != "student" and own not in (None, self.steps):
            said.append(
                f"sampled in {self.steps} steps, and its pipeline takes {own} unless told otherwise"
            )
        if self.unchecked:
            said.append("the pipeline's safety checker, which shows black images, is left out")
        return said + ["of each video the middle frame is measured"] * self.of_videos

    def weights(self) -> dict[str, str]:
        """SHA-256 of its weight files, by their place in the folder."""
        return self._hashes(WEIGHTS)

    def _hashes(self, suffixes: Sequence[str]) -> dict[str, str]:
        files = [self.folder] if self.folder.is_file() else sorted(self.folder.rglob("*"))
        kept = [file for file in files if file.suffix in suffixes]
        return {f.name if f == self.folder else _below(f, self.folder): digest(f) for f in kept}

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "path": self.source,
            "name": Path(self.source).name or self.source,
            "pipeline": type(self.model.pipeline).__name__,
            "role": self.role,
            "call": {**_own(self.model), **self.shape},
            "sha256": self.weights(),
            "config_sha256": self._hashes(CONFIGS),
        }

    @contextmanager
    def counting_calls(self) -> Iterator[Callable[[], int]]:
        """Inside, the calls of its network are counted: what is yielded tells them."""
        calls = [0]

        def count(*_: object) -> None:
            calls[0] += 1

        networks = [getattr(self.model.pipeline, name, None) for name in NETWORKS]
        hooks = [n.register_forward_pre_hook(count) for n in networks if isinstance(n, nn.Module)]
        try:
            yield lambda: calls[0]
        finally:
            for hook in hooks:
                hook.remove()


def load_subject(
    source: str,
    steps: int | None = None,
    guidance_scale: float | None = None,
    anyway: bool = False,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    shape: Mapping[str, int] | None = None,
) -> Subject:
    """Load a built-in name, a diffusers folder or a hub id, onto ``device``.

    ``shape`` are arguments of its pipeline's call, by the names in SHAPE. UserError for one that is
    missing or damaged, and for steps, guidance or a shape that it cannot take.
    """
    folder = folder_of(source)
    if not (folder / "model_index.json").is_file() and (folder / "student").is_dir():
        raise UserError(f"{source} is a run folder: name its student, {folder / 'student'}")
    index = read_model_index(folder)
    model: Sampled
    if str(index.get("_class_name")) in families.known():
        student = load_student(folder, dtype=dtype)
        if student.family.card.task == "image-to-video":
            raise UserError(
                f"{source} goes on from a first frame, which no protocol gives: sample it into a "
                "folder by yourself, and measure that with stepdistill eval images"
            )
        unknown = "teacher" if student.is_teacher else "other"
        model, role = student, unknown if student.plan is None else "student"
        own = student.family.teacher_steps if student.is_teacher else None
    else:
        model, role, own = load_foreign(folder, dtype), "other", None
    count = model.steps(own if steps is None else steps)
    guidance = model.guidance(guidance_scale, anyway)
    check_shape(source, model, shape or {})
    unchecked = getattr(model.pipeline, "safety_checker", None) is not None
    if unchecked:
        model.pipeline.safety_checker = None
    model.pipeline.to(device)
    model.pipeline.set_progress_bar_config(disable=True)
    kind: Role = "other" if role == "other" else "student" if role == "student" else "teacher"
    return Subject(source, folder, model, kind, count, guidance, dtype, shape or {}, unchecked)


def check_shape(source: str, model: Sampled, shape: Mapping[str, int]) -> None:
    """UserError for what its pipeline's call does not take, or a student was not trained at."""
    kind, own = type(model.pipeline).__name__, _own(model)
    takes = inspect.signature(model.pipeline.__call__).parameters
    for name, value in shape.items():
        if name not in takes or isinstance(model, SampledByFamily):
            raise UserError(f"{source}, a {kind}, takes no {name}: leave --{SHAPE[name]} out")
        if own.get(name, value) != value:
            raise UserError(
                f"{source} is always sampled at {name}={own[name]}, as it was trained: leave "
                f"--{SHAPE[name]} out"
            )


def _own(model: Sampled) -> Mapping[str, Any]:
    """The arguments that each call of a student of ours is made with."""
    return model.call if isinstance(model, Student) else {}


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _default(function: Any, name: str) -> Any:
    parameter = inspect.signature(function).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
