"""Students of any teacher, measured during training: distances and the diversity, in features.

Without a reference the distances are to the teacher's own samples, told the same. The Frechet
distance of few samples is too large, by about as much each time; the kernel distance (KID) is not,
and is measured too where the other side's features are at hand. Diversity is the mean distance of
two samples that are told the same, over the teacher's (1 is as diverse). The teacher is sampled
once, at the start, and what it gave is kept in the run folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..conditioning import Conditioning
from ..errors import NonFiniteError, StepDistillError, UserError
from ..evaluation.measuring import Want
from ..evaluation.references import load_reference
from ..files import differences
from ..methods.base import Method
from ..metrics.diversity import pairwise_distance
from ..metrics.extractors import extractor
from ..metrics.features import Features
from ..metrics.frechet import Moments, Statistics, few_samples, frechet_distance
from ..metrics.kid import kernel_distance, paired_squared_mmd
from ..runs import RunFolder
from ..sampling import NoiseStreams, sample_student, sample_teacher
from ..watching import Metrics, shared
from .options import EvalOptions
from .told import Order, Told
from .validation import picture

SUBSETS = 10  # of the kernel distance, of at most 1,000 samples each
FILE = "measured_teacher.safetensors"  # in the run folder
# (conditioning of a block, its image seeds) -> pictures in [-1, 1]
Sampler = Callable[[Conditioning, range], Tensor]


@dataclass(frozen=True)
class Target:
    """What the distances are to: a Gaussian, and its features (N, D) where they are known."""

    statistics: Statistics
    features: Tensor | None

    @classmethod
    def of(cls, features: Tensor) -> Target:
        """Samples by their features (N, D)."""
        return cls(statistics(features), features)


@dataclass(frozen=True)
class Baseline:
    """What students are compared with; ``spread`` is the teacher's mean distance of two samples
    that are told the same."""

    target: Target
    spread: float


@dataclass(frozen=True)
class Measuring:
    """How the students of a run are measured, checked before it begins.

    The extractor is on the ``device`` while it measures alone: it is made anew each time.
    ``reference`` is None where the teacher's own samples are it. ``block`` samples are drawn at a
    time, which the ranks share.
    """

    told: Told
    order: Order
    make: Callable[[], Features]
    block: int
    guidance_scale: float
    reference: Target | None
    facts: dict[str, Any]  # all that the teacher's numbers depend on

    @property
    def distances(self) -> tuple[str, str]:
        """The names of the Frechet distance and of the kernel distance."""
        return ("teacher_distance", "teacher_kid") if self.reference is None else ("fid", "kid")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is measured."""
        known = self.reference is None or self.reference.features is not None
        return (*self.distances[: 1 + known], "diversity", "num_samples")

    @classmethod
    def of(
        cls,
        own: EvalOptions,
        told: Told,
        num: int,
        block: int,
        guidance_scale: float,
        accelerator: Accelerator,
    ) -> Measuring:
        """UserError for too few samples, weights that are missing, a reference that is of another
        extractor, and pictures that the extractor does not see."""
        if num < 4:
            raise UserError(f"evaluate_samples must be at least 4 to be measured, got {num}")
        name, order = own.features or default_features(told), Order.of(num, told.count)

        def make() -> Features:
            return extractor(name, own.weights, accelerator.device)

        try:
            features = make()
        except UserError as error:
            raise UserError(
                f"students are to be measured on {name} features (give --eval.features and "
                f"--eval.weights, or evaluate_every=0 for no measurement): {error}"
            ) from error
        channels, *_, height, width = told.teacher.family.pixel_shape(told.teacher)
        features(torch.zeros(1, channels, height, width))
        reference, record = None, None
        if own.reference is not None:
            found = load_reference(Path(own.reference))
            measured = found.measure([Want(features, keep=True)])[0]
            reference = Target(measured.statistics, measured.features)
            record = {k: v for k, v in found.record().items() if k != "path"}
        facts = {
            "features": [features.name, features.sha256],
            "samples": num,
            "told": told.source,
            "guidance_scale": guidance_scale,
            "reference": record,
        }
        short = few_samples(num, features.size)
        if short and accelerator.is_main_process:
            print(f"evaluate_samples={num} give a trend, and no more: {short}", file=sys.stderr)
        return cls(told, order, make, block, guidance_scale, reference, facts)

    def evaluation(
        self, method: Method, run: RunFolder, accelerator: Accelerator
    ) -> Callable[[], Metrics]:
        """Measures the generator as it is when called, on all ranks; the metrics are the main
        process's alone. The teacher is sampled first, unless ``run`` has its numbers."""
        baseline = self.baseline(run, accelerator)
        student = student_sampler(method, self.told)

        def evaluate() -> Metrics:
            features = self.features(student, 0, self.order.num, accelerator)
            if baseline is None:
                return {}
            return self.compare(features, baseline)

        return evaluate

    def compare(self, features: Tensor, baseline: Baseline) -> Metrics:
        """The metrics of features (num, D). NonFiniteError if one is NaN or Inf."""
        target, (frechet, kernel) = baseline.target, self.distances
        found: dict[str, float] = {
            frechet: frechet_distance(statistics(features), target.statistics)
        }
        if target.features is not None:
            kid = paired_kid if self.reference is None else unpaired_kid
            found[kernel] = kid(features, target.features)
        found |= {
            "diversity": self.spread(features) / baseline.spread,
            "num_samples": len(features),
        }
        if not torch.tensor([*found.values()]).isfinite().all():
            raise NonFiniteError(f"NaN or Inf where students are measured: {found}")
        return found

    def baseline(self, run: RunFolder, accelerator: Accelerator) -> Baseline | None:
        """On the main process, which keeps it in ``run``; None on others, which help to sample.

        UserError for one in ``run`` that was measured otherwise.
        """
        path, found = run.path / FILE, None
        if accelerator.is_main_process and path.exists():
            found = load_baseline(path, self.facts, self.reference)
        if shared(accelerator, found is not None):
            return found
        num = self.order.num if self.reference is None else self.order.near
        if accelerator.is_main_process:
            print(f"sampling the teacher {num:,} times, once, into {path}", file=sys.stderr)
        teacher = teacher_sampler(self.told, self.guidance_scale)
        # other noise than the students': with the same the distance would come out too small
        features = self.features(teacher, self.order.num, num, accelerator, "sampling the teacher")
        if not accelerator.is_main_process:
            return None
        target = Target.of(features) if self.reference is None else self.reference
        made = Baseline(target, self.spread(features))
        if not made.spread > 0:
            raise UserError(
                f"the teacher gives the same picture each time, as {self.facts['features'][0]} "
                "features see it, so there is no diversity to keep: set evaluate_every=0, or "
                "choose other --eval.features"
            )
        save_baseline(made, path, self.facts)
        return made

    def features(
        self,
        sampler: Sampler,
        first_seed: int,
        num: int,
        accelerator: Accelerator,
        bar: str | None = None,
    ) -> Tensor:
        """(num, D) on all ranks: sample i has the seed ``first_seed`` + i. Each rank takes every
        so many-th block, so the samples do not depend on how many there are."""
        network, rank = self.make(), accelerator.process_index
        found = torch.zeros(num, network.size)
        begins = range(rank * self.block, num, accelerator.num_processes * self.block)
        silent = None if bar and accelerator.is_main_process else True
        for begin in tqdm(begins, bar, disable=silent):
            rows = range(begin, min(begin + self.block, num))
            cond = self.told.read(self.order.places[rows.start : rows.stop].tolist())
            seeds = range(first_seed + rows.start, first_seed + rows.stop)
            try:
                found[rows.start : rows.stop] = network(sampler(cond, seeds)).float().cpu()
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"while measuring, seeds {seeds.start} to {seeds.stop - 1}: {error}"
                ) from error
            except torch.OutOfMemoryError as error:
                raise StepDistillError(
                    f"out of memory while measuring {len(rows)} samples at a time: give a smaller "
                    "eval.batch_size, and run the same command to go on"
                ) from error
        # the rows of the others are zero here, so that the sum is exact
        whole: Tensor = accelerator.reduce(found.to(accelerator.device), "sum")
        return whole.cpu()

    def spread(self, features: Tensor) -> float:
        """Mean Euclidean distance of two samples that are told the same."""
        near, kinds = features[: self.order.near], self.order.kinds
        return float(pairwise_distance(near, [slice(k, None, kinds) for k in range(kinds)]).mean())


def statistics(features: Tensor) -> Statistics:
    """The Gaussian of features (B, D)."""
    moments = Moments()
    moments.add(features)
    return Statistics.of(moments)


def paired_kid(features: Tensor, teacher: Tensor) -> float:
    """To the teacher's features (N, D), told the same row by row."""
    return float(paired_squared_mmd(features, teacher))


def unpaired_kid(features: Tensor, real: Tensor) -> float:
    """To a reference's features (M, D)."""
    return kernel_distance(features, real, subsets=SUBSETS).mean


def default_features(told: Told) -> str:
    """The built-in digits' classifier for pictures such as theirs, Inception for any other."""
    shape = told.teacher.family.pixel_shape(told.teacher)
    return "digits" if shape == (1, 8, 8) else "inception"


def student_sampler(method: Method, told: Told) -> Sampler:
    """Pictures of the generator as it is when called."""
    teacher = told.teacher

    def sample(cond: Conditioning, seeds: range) -> Tensor:
        generator, shape = method.roles["generator"].frozen, teacher.sample_shape
        x0 = sample_student(generator, method.plan, cond, shape, NoiseStreams(seeds))
        return picture(teacher, x0)

    return sample


def teacher_sampler(told: Told, guidance_scale: float) -> Sampler:
    """Pictures of the teacher, in its own steps."""
    teacher = told.teacher

    def sample(cond: Conditioning, seeds: range) -> Tensor:
        z = NoiseStreams(seeds).normal(teacher.sample_shape)
        return picture(teacher, sample_teacher(teacher, cond, z, guidance_scale=guidance_scale))

    return sample


def save_baseline(baseline: Baseline, path: Path, facts: dict[str, Any]) -> None:
    """Write it and what it depends on, aside and renamed."""
    tensors = {"spread": torch.tensor(baseline.spread, dtype=torch.float64)}
    if facts["reference"] is None and baseline.target.features is not None:
        tensors["features"] = baseline.target.features
    aside = path.with_name(path.name + ".partial")
    save_file(tensors, aside, {"facts": json.dumps(facts)})
    aside.replace(path)


def load_baseline(path: Path, facts: dict[str, Any], reference: Target | None) -> Baseline:
    """Read what :func:`save_baseline` wrote. UserError if it depends on other ``facts``."""
    with safe_open(path, "pt") as file:
        then = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if then != facts:
        raise UserError(
            f"students of {path.parent} were measured otherwise ({differences(then, facts)}): give "
            "the same options, or another --output"
        )
    target = Target.of(tensors["features"]) if reference is None else reference
    return Baseline(target, float(tensors["spread"]))
