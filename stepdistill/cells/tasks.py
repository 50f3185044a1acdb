"""What each cell of a comparison trains: settings, the calls of an iteration, and how many."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..conditioning import Conditioning
from ..config import Settings, as_arguments
from ..data import TensorData
from ..distil.build import build_method
from ..distil.degradation import path_options
from ..distil.options import read_settings
from ..draws import Draws, check_seed
from ..errors import UserError
from ..evaluation.options import check_least
from ..fit import FitConfig
from ..memory import estimate
from ..methods import METHODS
from ..methods.base import Batch, Method
from ..methods.disback import Degradation
from ..methods.matching import Matching
from ..network_calls import Calls, calls_of, calls_of_sampler
from ..parser import nearest
from ..presets import lengths
from ..sampling import sample_teacher
from ..teachers import Teacher, load_teacher
from .given import as_read
from .worlds import World, find_world

SAMPLES = 8  # of the batch that calls are counted on


@dataclass(frozen=True)
class Asked:
    """What is to be compared. UserError for what is no comparison.

    ``budget`` are network calls a cell; ``num`` are the samples a student is measured on, None for
    the protocol's; ``minutes`` is the most processor time a cell trains, None for no limit;
    ``pairs`` is how many noise-image pairs a method that needs them is given; ``settings`` stand in
    place of the presets', as a command line writes them.
    """

    methods: tuple[str, ...]
    teacher: str
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    budget: float
    output: Path
    num: int | None = None
    minutes: float | None = None
    pairs: int = 5_000
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("methods", "steps", "seeds"):
            given = getattr(self, name)
            if not given:
                raise UserError(f"{name} is empty: name at least one")
            twice = [one for one in dict.fromkeys(given) if given.count(one) > 1]
            if twice:
                raise UserError(f"{name} names {twice[0]} twice: name each once")
        for method in self.methods:
            if method not in METHODS:
                near = nearest(method, METHODS)
                hint = f" Did you mean {near}?" if near else ""
                raise UserError(
                    f"there is no method {method}.{hint} The methods are: {', '.join(METHODS)}"
                )
        if min(self.steps) < 1:
            raise UserError(f"steps must be at least 1, got {min(self.steps)}")
        for seed in self.seeds:
            check_seed(seed)
        check_least(self, {"num": 2, "pairs": 1})
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"minutes must be above 0, got {self.minutes}: leave it out for none")
        if not 0 < self.budget < float("inf"):
            raise UserError(f"budget must be a number of network calls above 0, got {self.budget}")

    @property
    def world(self) -> World:
        """Where it is measured."""
        return find_world(self.teacher)

    @property
    def samples(self) -> int:
        """That a student is measured on."""
        return self.num or self.world.num


@dataclass(frozen=True)
class Task:
    """A method and a number of steps, whatever the seed.

    ``settings`` are options of ``train``, ``iterations`` all that the budget pays for, beside
    ``pairs`` pairs of ``pair_calls`` each and the ``path_calls`` of a recorded path; ``given`` are
    the settings that a person chose, those that count iterations in the preset's length.
    """

    method: str
    steps: int
    settings: Mapping[str, Any]
    calls: Calls
    batch_size: int
    iterations: int
    pairs: int = 0
    pair_calls: int = 0
    path_calls: float = 0.0
    given: Mapping[str, Any] = field(default_factory=dict)

    def spent(self, iterations: int) -> float:
        """Network calls of so many iterations, and of what comes before them."""
        before = self.pairs * self.pair_calls + self.path_calls
        return self.calls.of(iterations, self.batch_size) + before


@dataclass(frozen=True)
class Planned:
    """The tasks, and in words what was left out."""

    tasks: tuple[Task, ...]
    left_out: tuple[str, ...]


def plan(asked: Asked) -> Planned:
    """Every task built, and its calls counted. UserError for one that cannot be done.

    A number of steps that a method cannot train is left out, if it can train another one.
    """
    asked.world.bar()
    teacher = load_teacher(asked.teacher)
    tasks, left_out = [], []
    for method in asked.methods:
        own, refused = [], []
        for steps in asked.steps:
            try:
                own.append(_task(asked, method, steps, teacher))
            except CannotPlanError as error:
                refused.append(error)
        if not own:
            raise refused[0]
        tasks += own
        left_out += [f"{method} in {error.steps} steps: {error}" for error in refused]
    return Planned(tuple(tasks), tuple(left_out))


class CannotPlanError(UserError):
    """A method that cannot train this many steps."""

    def __init__(self, steps: int, message: str) -> None:
        super().__init__(message)
        self.steps = steps


def needs_pairs(method: str) -> bool:
    """Whether it learns from noise-image pairs."""
    return any(need.startswith("pairs") for need in METHODS[method].card.needs)


def _task(asked: Asked, method: str, steps: int, teacher: Teacher) -> Task:
    settings = lengths.compared(asked.teacher, method, steps)
    if not settings:
        raise UserError(
            f"there are no settings for {method} on {asked.teacher}: add a preset of them to "
            "stepdistill/presets, or leave it out of --methods"
        )
    parsed = _parsed(asked, method, steps, {**settings, **asked.settings})
    chosen = as_read(parsed.resolved, tuple(asked.settings))
    try:
        built = build_method(method, parsed, teacher)
        teacher.check_plan(built.plan)
    except UserError as error:
        raise CannotPlanError(steps, str(error)) from error
    size = parsed.get(FitConfig).batch_size
    calls = _calls(built, teacher, parsed.get(FitConfig), needs_pairs(method))
    pairs, each = 0, 0
    if needs_pairs(method):
        pairs, each = asked.pairs, pair_calls(teacher, asked.world.bar()["guidance_scale"])
    recorded = _path_calls(built, teacher, parsed)
    iterations = calls.iterations(asked.budget - pairs * each - recorded, size)
    if iterations < built.critic_steps:
        least = calls.of(built.critic_steps, size)
        beside = f" beside {pairs * each:,} for its {pairs:,} pairs" if pairs else ""
        beside += f" beside {recorded:,.0f} for its path" if recorded else ""
        raise UserError(
            f"a budget of {asked.budget:,.0f} network calls is too small for {method} in {steps} "
            f"step{'s' * (steps > 1)}: a generator update takes {least:,.0f}{beside}"
        )
    scaled = lengths.scaled({**settings, **chosen}, iterations)
    return Task(method, steps, scaled, calls, size, iterations, pairs, each, recorded, chosen)


def _parsed(asked: Asked, method: str, steps: int, settings: Mapping[str, Any]) -> Settings:
    given = {"teacher": asked.teacher, "output": str(asked.output), "steps": steps, **settings}
    return read_settings(method, as_arguments(given))


def _path_calls(method: Method, teacher: Teacher, parsed: Settings) -> float:
    """Of the degradation, where the method goes back along a path."""
    own = path_options(parsed)
    if not own.iterations or not isinstance(method, Matching):
        return 0.0
    config = parsed.get(FitConfig)
    calls = _calls(Degradation(method, own.lr), teacher, config, False)
    return calls.of(own.iterations, config.batch_size)


def _calls(method: Method, teacher: Teacher, config: FitConfig, pairs: bool) -> Calls:
    """A path is not recorded yet: its states cost what the teacher does."""
    if isinstance(method, Matching):
        method = copy.copy(method)
        method.path = None
    cond = _told(teacher, SAMPLES)

    def batch_of(draws: Draws) -> Batch:
        x0, z = (torch.randn(SAMPLES, *teacher.sample_shape) for _ in range(2))
        return Batch(x0 if method.needs_data else None, cond, draws, z if pairs else None)

    return calls_of(method, SAMPLES, batch_of, config.max_steps)


def _told(teacher: Teacher, count: int) -> Conditioning:
    return teacher.probe().expand(count)


def pair_calls(teacher: Teacher, guidance_scale: float) -> int:
    """Network calls of one noise-image pair, by the sampler of the teacher's family."""
    cond, z = teacher.probe(), torch.randn(1, *teacher.sample_shape)
    sampler = partial(sample_teacher, teacher, cond, z, guidance_scale=guidance_scale)
    return calls_of_sampler(sampler)


@torch.enable_grad()
def peak_bytes(asked: Asked, task: Task) -> int | None:
    """The most that an update takes of a CPU's memory: weights, moments, gradients and activations;
    None where it cannot be counted."""
    teacher = load_teacher(asked.teacher)
    parsed = _parsed(asked, task.method, task.steps, task.settings)
    method = build_method(task.method, parsed, teacher)
    one = TensorData(torch.zeros(1, *teacher.sample_shape), teacher.probe())
    found = estimate(method, one, parsed.get(FitConfig), 1, "cpu")
    return None if found.problem else found.peak


def listing(planned: Planned, seeds: Sequence[int]) -> str:
    """What will be done, in lines: a row a task."""
    head = ("method", "steps", "calls an iteration", "batch", "iterations", "calls a cell", "pairs")
    rows = [head]
    for task in planned.tasks:
        each, whole = f"{task.calls.per_iteration:.4g} a sample", task.spent(task.iterations)
        pairs = f"{task.pairs:,} of {task.pair_calls} calls" if task.pairs else "-"
        counts = (f"{task.batch_size:,}", f"{task.iterations:,}", f"{whole:,.0f}", pairs)
        rows.append((task.method, str(task.steps), each, *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    cells = len(planned.tasks) * len(seeds)
    plural = "s" if len(seeds) > 1 else ""
    lines.append(f"cells: {cells}, of seed{plural} {_listed(seeds)} each")
    return "\n".join(lines + [f"left out, {words}" for words in planned.left_out])


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
