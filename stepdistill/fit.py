"""The one loop. Nothing else in the library calls ``backward`` or ``step``.

An *iteration* takes one global batch and runs the method's critic loss; every ``critic_steps``-th
iteration also runs its generator loss (DMD2's counting: with critic_steps = 5, six losses in five
iterations). A method without a critic updates its generator in each. Learning rates, logs,
checkpoint names and ``max_steps`` count iterations.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW, Optimizer

from . import checkpoint
from .checkpoint import Checkpoint
from .checks import all_finite, check_gradients, check_runnable, check_shared, non_finite
from .conditioning import ConditionDropout
from .data.loading import Cut, Data, Micro, global_batches
from .draws import Draws, key, seed_dropout
from .ema import EMA
from .fit_config import FitConfig as FitConfig
from .memory import out_of_memory_explained
from .methods.base import Batch, Loss, Method
from .progress import Progress
from .running_means import RunningMeans
from .runs import RunFolder
from .signals import StopSignals
from .watching import Metrics as Metrics
from .watching import Watch, check_watched

# (iteration, method, average of the generator's weights): whatever someone wants done beside
Hook = Callable[[int, Method, EMA], None]


@dataclass(frozen=True)
class FitResult:
    """Where the loop stopped; the averaged generator is in place inside ``ema.applied()``.

    ``stopped`` says why, if ``stop_after`` has ended the run, and is "" otherwise.
    """

    iteration: int
    interrupted: bool
    ema: EMA
    metrics: dict[str, float]
    stopped: str = ""


def fit(
    method: Method,
    data: Data,
    config: FitConfig,
    run: RunFolder | str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    evaluate: Callable[[], Metrics] | None = None,
    draw_samples: Callable[[int], None] | None = None,
    hooks: Sequence[Hook] = (),
    condition_dropout: ConditionDropout | None = None,
    resume: bool = True,
) -> FitResult:
    """Train ``method`` on ``data`` in the folder ``run``, going on from its newest checkpoint.

    ``evaluate`` and ``draw_samples`` are called with the averaged generator in place, ``evaluate``
    on every process, of which the main one's metrics count; ``best_metric`` of them decides which
    checkpoint is kept as the best, and when ``stop_after`` ends the run. ``settings`` are compared
    on resume. ``hooks`` are called after each iteration, on every process, once it is saved and
    measured where that was due. ``condition_dropout`` hides conditionings of the data at random.
    Raises UserError for settings that cannot run and NonFiniteError for NaN or Inf; on SIGTERM or
    SIGINT it finishes the iteration, saves, and returns with ``interrupted`` set.
    """
    accelerator = accelerator or Accelerator(mixed_precision="no")
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    main, total = accelerator.is_main_process, config.max_steps
    check_watched(config, measures=evaluate is not None)
    metrics: Metrics = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(out_of_memory_explained(method, data, config, accelerator))
        loop = _Loop(method, data, config, folder, settings or {}, accelerator, condition_dropout)
        if main and not folder.held:
            stack.enter_context(folder)
        stop = stack.enter_context(StopSignals())
        iteration, interrupted = loop.begin(resume), False
        watch = Watch(evaluate, config, accelerator, folder)
        progress = Progress(folder, accelerator, iteration, total, config.batch_size, loop.settings)
        stack.enter_context(progress)
        stopped = watch.stopped(iteration)
        if stopped and main:
            mend = "raise stop_after, or set it to 0, to go on"
            print(f"{folder.path} is done: it {stopped}; {mend}", file=sys.stderr)
        while iteration < total and not interrupted and not stopped:
            iteration += 1
            with progress.timed():
                loop.iterate(iteration)
            interrupted = iteration < total and stop.asked(accelerator)
            measured = None
            if watch.due(iteration):
                with loop.ema.applied():
                    metrics, measured = watch.measure(iteration, progress)
                stopped = watch.end(iteration)
            if draw_samples is not None and main and config.due("sample", iteration, bool(stopped)):
                with loop.ema.applied():
                    draw_samples(iteration)
            if config.due("log", iteration, bool(stopped)):
                progress.training(iteration, loop.read_logs())
            if config.due("save", iteration) or measured is not None or interrupted:
                loop.save(iteration, measured)
            for hook in hooks:
                hook(iteration, method, loop.ema)
    return FitResult(iteration, interrupted, loop.ema, dict(metrics), stopped)


def _adamw(config: FitConfig) -> Callable[..., Optimizer]:
    """AdamW; in 8 bits where asked for, which ``config`` has found to be installed."""
    if config.adam_8bit:
        from bitsandbytes.optim import AdamW8bit

        return partial(AdamW8bit)
    return partial(AdamW, fused=True)


class _Loop:
    """The state of a run and its one step."""

    def __init__(
        self,
        method: Method,
        data: Data,
        config: FitConfig,
        run: RunFolder,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
        condition_dropout: ConditionDropout | None,
    ) -> None:
        check_runnable(method, data, accelerator)
        rank, ranks = accelerator.process_index, accelerator.num_processes
        self.cut = Cut.of(config.batch_size, config.shards, config.accumulate, rank, ranks)
        self.method, self.data, self.config = method, data, config
        self.run, self.accelerator = run, accelerator
        self.condition_dropout = condition_dropout
        for role in method.roles.values():
            role.prepare(accelerator)
        for role in method.roles.values():
            role.check_sharing()
        # learning rates are set at every step
        adamw = partial(_adamw(config), betas=config.betas, weight_decay=config.weight_decay)
        self.optimizers = {n: adamw(role.trainable().values()) for n, role in method.roles.items()}
        self.ema = EMA(method.roles["generator"], config.ema_half_life, config.ema_rampup)
        self.settings = {**settings, **config.trajectory()}
        self.statistics: Mapping[str, RunningMeans] = getattr(method, "statistics", {})
        self.checkpoint = Checkpoint(
            method.roles, self.optimizers, self.ema, self.settings, self.statistics
        )
        self.logs: dict[str, Tensor] = {}  # the last value of every term
        self._checked: set[str] = set()

    def begin(self, resume: bool) -> int:
        """Load the newest complete checkpoint; the iteration to go on from, 0 for a new run."""
        accelerator, config, first = self.accelerator, self.config, 0
        newest = checkpoint.newest(self.run.checkpoints, resume)
        if newest is not None:
            first, logs = self.checkpoint.load(newest)
            self.logs = {k: torch.tensor(v, device=accelerator.device) for k, v in logs.items()}
        check_shared(accelerator, self.run.path, first)
        if accelerator.is_main_process:
            self.run.rewind(first)
            if first:
                print(f"resuming {self.run.path} from iteration {first}", file=sys.stderr)
        last, workers = config.max_steps, config.workers
        texts: bool = getattr(self.method, "needs_texts", False)
        self._batches = global_batches(
            self.data, self.cut, config.seed, first, last, workers, self.condition_dropout, texts
        )
        return first

    def save(self, iteration: int, metric: float | None) -> None:
        """Write a checkpoint and drop old ones, on the main process."""
        logs = self.read_logs()
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.run.checkpoints, iteration, metric, logs)
            checkpoint.prune(self.run.checkpoints, self.config.keep)
        self.accelerator.wait_for_everyone()

    def iterate(self, iteration: int) -> None:
        """One global batch through each loss whose turn it is."""
        batches = [micro.to(self.accelerator.device) for micro in next(self._batches)]
        for purpose in self.method.updates:
            if purpose != "generator" or iteration % self.method.critic_steps == 0:
                self._update(purpose, iteration, batches)

    def _update(self, purpose: str, iteration: int, batches: Sequence[Micro]) -> None:
        """Losses of all micro-batches, then one clipped step of each role this loss trains."""
        terms = self._backward(purpose, iteration, batches)
        if purpose not in self._checked:
            check_gradients(self.method, purpose)
            self._checked.add(purpose)
        norms = {}
        for name in self.method.updates[purpose]:
            parameters = list(self.method.roles[name].trainable().values())
            norms[name] = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        if not all_finite([terms["loss"], *norms.values()]):
            raise non_finite(purpose, iteration, terms, norms, batches)
        for name in norms:
            rate = self.method.learning_rates[name] * self.config.lr_factor(iteration)
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
        for means in self.statistics.values():
            means.fold(partial(self.accelerator.reduce, reduction="sum"))
        if purpose == "generator":
            updates = iteration // self.method.critic_steps
            self.ema.update(self.config.batch_size, updates * self.config.batch_size)
        self.logs |= {f"{purpose}/{term}": value for term, value in terms.items()}
        self.logs |= {f"{name}/grad_norm": norm for name, norm in norms.items()}

    def _backward(
        self, purpose: str, iteration: int, batches: Sequence[Micro]
    ) -> dict[str, Tensor]:
        """Gradients of the mean loss over the micro-batches; the means of its terms."""
        loss_of: Callable[[Batch], Loss] = getattr(self.method, f"{purpose}_loss")
        roles = [self.method.roles[name] for name in self.method.updates[purpose]]
        seed, device, count = self.config.seed, self.accelerator.device, len(batches)
        # no cache: torch before 2.10 reuses a weight cast under no_grad, and loses its gradient
        autocast = partial(torch.autocast, device.type, torch.bfloat16, cache_enabled=False)
        terms: dict[str, Tensor] = {}
        for i, micro in enumerate(batches):
            draws = Draws(seed, iteration, purpose, micro.shards, device)
            seed_dropout(key(seed, iteration, purpose, draws.shards), device)
            with contextlib.ExitStack() as stack:
                for role in roles:
                    stack.enter_context(role.unsynchronised(self.accelerator, i < count - 1))
                with autocast(enabled=self.config.bf16):
                    loss = loss_of(Batch(micro.x0, micro.cond, draws, micro.z, micro.texts))
                torch.autograd.backward(loss.value / count)
            for term, value in {"loss": loss.value, **loss.logs}.items():
                terms[term] = terms.get(term, 0) + value.detach() / count
        return terms

    def read_logs(self) -> dict[str, float]:
        """The last value of every term, averaged over ranks; one read from the device."""
        if not self.logs:
            return {}
        names = sorted(self.logs)
        values = torch.stack([self.logs[name].float().reshape(()) for name in names])
        means = self.accelerator.reduce(values.to(self.accelerator.device), "mean")
        return dict(zip(names, means.tolist(), strict=True))
