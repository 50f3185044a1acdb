"""The one loop. Nothing else in the library calls ``backward`` or ``step``.

An *iteration* takes one global batch and runs the method's critic loss; every ``critic_steps``-th
iteration also runs its generator loss (DMD2's counting: with critic_steps = 5, six losses in five
iterations). A method without a critic updates its generator in each. Learning rates, logs,
checkpoint names and ``max_steps`` count iterations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from . import checkpoint
from .checkpoint import Checkpoint
from .data.loading import Data, ShardedOrder, micro_batches
from .draws import Draws, key
from .ema import EMA
from .errors import NonFiniteError, StepDistillError, UserError
from .memory import out_of_memory_advice
from .methods.base import Batch, Loss, Method
from .runs import RunFolder

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class FitConfig:
    """Settings of the loop, the same for every method."""

    max_steps: int = 1000  # iterations
    batch_size: int = 128  # global: over all ranks and accumulated micro-batches
    accumulate: int = 1  # micro-batches a rank cuts its part of the batch into
    shards: int = 8  # cuts of the batch that draw on their own; ranks x accumulate divides it
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW
    weight_decay: float = 0.01
    grad_clip: float = 10.0  # largest gradient norm of a role
    lr_warmup: int = 0  # iterations of linear rise at the start
    lr_decay: int = 0  # iterations of linear fall to zero at the end
    ema_half_life: float = 50_000  # images; the generator's average is evaluated and exported
    bf16: bool = False  # autocast the networks; schedules and losses stay float32
    workers: int = 0  # data loading processes
    log_every: int = 10
    save_every: int = 500
    keep: int = 2  # newest checkpoints kept, beside the best
    sample_every: int = 0  # 0: never
    evaluate_every: int = 0  # 0: never

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "shards", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    def lr_factor(self, iteration: int) -> float:
        """Multiplier of every learning rate at ``iteration`` (from 1)."""
        rise = min(1.0, iteration / self.lr_warmup) if self.lr_warmup else 1.0
        left = self.max_steps - iteration + 1
        fall = min(1.0, left / self.lr_decay) if self.lr_decay else 1.0
        return rise * fall

    def trajectory(self) -> dict[str, Any]:
        """The settings that a resumed run must share: those that change the numbers."""
        free = {"accumulate", "workers", "log_every", "save_every", "keep", "sample_every"}
        free |= {"evaluate_every"} | (set() if self.lr_decay else {"max_steps"})
        fields = dataclasses.asdict(self)
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if k not in free
        }


@dataclass(frozen=True)
class FitResult:
    """Where the loop stopped; the averaged generator is in place inside ``ema.applied()``."""

    iteration: int
    interrupted: bool
    ema: EMA
    metrics: dict[str, float]


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
    resume: bool = True,
) -> FitResult:
    """Train ``method`` on ``data`` in the folder ``run``, going on from its newest checkpoint.

    ``evaluate`` and ``draw_samples`` are called with the averaged generator in place; the metric
    ``fid`` of ``evaluate`` decides which checkpoint is kept as the best. ``settings`` are compared
    on resume. Raises UserError for settings that cannot run and NonFiniteError for NaN or Inf; on
    SIGTERM or SIGINT it finishes the iteration, saves, and returns with ``interrupted`` set.
    """
    accelerator = accelerator or Accelerator(mixed_precision="no")
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    loop = _Loop(method, data, config, folder, dict(settings or {}), accelerator)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process and not isinstance(run, RunFolder):
            stack.enter_context(folder)
        stop = stack.enter_context(_signals())
        first = loop.resume() if resume else 0
        trackers = _trackers(accelerator, folder, loop.settings)
        try:
            return _run(loop, first, stop, trackers, evaluate, draw_samples)
        except torch.OutOfMemoryError as error:
            raise StepDistillError(out_of_memory_advice(method.roles, config.batch_size)) from error
        finally:
            accelerator.end_training()


def _run(
    loop: _Loop,
    first: int,
    stop: _Stop,
    trackers: bool,
    evaluate: Callable[[], Metrics] | None,
    draw_samples: Callable[[int], None] | None,
) -> FitResult:
    """Iterations ``first`` + 1 to the end, with what happens between them."""
    config, accelerator, run = loop.config, loop.accelerator, loop.run
    main = accelerator.is_main_process
    metrics: dict[str, float] = {}
    bar = tqdm(total=config.max_steps, initial=first, unit="it", disable=None if main else True)
    began, since = time.perf_counter(), first
    iteration = first
    for iteration in range(first + 1, config.max_steps + 1):
        loop.iterate(iteration)
        last = iteration == config.max_steps or stop.asked(accelerator)
        measured = None
        if _due(config.evaluate_every, iteration, last) and evaluate is not None:
            with loop.ema.applied():
                metrics = dict(evaluate())
            measured = metrics.get("fid")
            if main:
                run.log({"iteration": iteration, **{f"eval/{k}": v for k, v in metrics.items()}})
        if _due(config.sample_every, iteration, last) and draw_samples is not None and main:
            with loop.ema.applied():
                draw_samples(iteration)
        if _due(config.log_every, iteration, last):
            seconds = time.perf_counter() - began
            record = loop.read_logs(iteration)
            record["images_per_second"] = (iteration - since) * config.batch_size / seconds
            record["memory_gb"] = _memory_gb()
            began, since = time.perf_counter(), iteration
            if main:
                run.log(record)
                bar.set_postfix({k: f"{v:.4g}" for k, v in record.items() if k.endswith("/loss")})
            if trackers:
                accelerator.log(record, step=iteration)
        if measured is not None or _due(config.save_every, iteration, last):
            loop.save(iteration, measured)
        bar.update()
        if last and iteration < config.max_steps:
            break
    bar.close()
    return FitResult(iteration, iteration < config.max_steps, loop.ema, metrics)


class _Loop:
    """The state of a run and its one step."""

    def __init__(
        self,
        method: Method,
        data: Data,
        config: FitConfig,
        run: RunFolder,
        settings: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        if len(data) == 0:
            raise UserError("the data is empty: there is nothing to train on")
        self.method, self.data, self.config = method, data, config
        self.run, self.accelerator = run, accelerator
        self.shards = self._shards()
        for role in method.roles.values():
            role.prepare(accelerator)
        for role in method.roles.values():
            role.check_sharing()
        self.optimizers = {
            name: torch.optim.AdamW(
                list(role.trainable().values()),
                lr=method.learning_rates[name],
                betas=config.betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
            for name, role in method.roles.items()
        }
        self.ema = EMA(method.roles["generator"], config.ema_half_life)
        self.settings = {**settings, **config.trajectory()}
        self.checkpoint = Checkpoint(method.roles, self.optimizers, self.ema, self.settings)
        self.batches: Iterator[Any] | None = None
        self.logs: dict[str, Tensor] = {}
        self._checked: set[str] = set()

    def resume(self) -> int:
        """Load the newest complete checkpoint; the iteration to go on from, 0 for a new run."""
        found = checkpoint.complete(self.run.checkpoints)
        if not found:
            return 0
        iteration = self.checkpoint.load(found[-1])
        if self.accelerator.is_main_process:
            self.run.rewind(iteration)
            print(f"resuming {self.run.path} from iteration {iteration}", file=sys.stderr)
        return iteration

    def save(self, iteration: int, metric: float | None) -> None:
        """Write a checkpoint and drop old ones, on the main process."""
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.run.checkpoints, iteration, metric)
            checkpoint.prune(self.run.checkpoints, self.config.keep)
        self.accelerator.wait_for_everyone()

    def iterate(self, iteration: int) -> None:
        """One global batch through each loss whose turn it is."""
        batches = self._fetch(iteration)
        for purpose in self.method.updates:
            if purpose != "generator" or iteration % self.method.critic_steps == 0:
                self._update(purpose, iteration, batches)

    def _update(self, purpose: str, iteration: int, batches: list[Any]) -> None:
        """Losses of all micro-batches, then one clipped step of each role this loss trains."""
        loss_of: Callable[[Batch], Loss] = getattr(self.method, f"{purpose}_loss")
        names = self.method.updates[purpose]
        count = len(batches)
        for micro, (x0, cond) in enumerate(batches):
            draws = self._draws(iteration, purpose, micro)
            torch.manual_seed(key(self.config.seed, iteration, purpose, draws.shards))  # dropout
            with contextlib.ExitStack() as stack:
                for name in names:
                    waits = micro < count - 1
                    role = self.method.roles[name]
                    stack.enter_context(role.unsynchronised(self.accelerator, waits))
                with self._autocast():
                    loss = loss_of(Batch(x0, cond, draws))
                torch.autograd.backward(loss.value / count)
            self._log(purpose, "loss", loss.value.detach())
            for term, value in loss.logs.items():
                self._log(purpose, term, value)
        if purpose not in self._checked:
            self._check_gradients(purpose, names)
        self._step(purpose, iteration, names, loss)

    def _step(self, purpose: str, iteration: int, names: tuple[str, ...], loss: Loss) -> None:
        factor = self.config.lr_factor(iteration)
        for name in names:
            parameters = list(self.method.roles[name].trainable().values())
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip, foreach=True)
            self._log(name, "grad_norm", norm)
            if not math.isfinite(norm.item()):
                raise NonFiniteError(_non_finite(purpose, iteration, name, loss))
        for name in names:
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = self.method.learning_rates[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if purpose == "generator":
            updates = iteration // self.method.critic_steps
            self.ema.update(self.config.batch_size, updates * self.config.batch_size)

    def read_logs(self, iteration: int) -> dict[str, float]:
        """The last values of every term, averaged over ranks; one read from the device."""
        names = sorted(self.logs)
        values = torch.stack([self.logs[name].float().reshape(()) for name in names])
        values = self.accelerator.reduce(values.to(self.accelerator.device), "mean")
        return {"iteration": iteration, **dict(zip(names, values.tolist(), strict=True))}

    def _log(self, owner: str, term: str, value: Tensor) -> None:
        self.logs[f"{owner}/{term}"] = value.detach()

    def _shards(self) -> list[range]:
        """The global numbers of the shards of each micro-batch of this rank."""
        config, ranks = self.config, self.accelerator.num_processes
        shards = math.gcd(config.batch_size, config.shards)
        parts = ranks * config.accumulate
        if shards % parts:
            raise UserError(
                f"{ranks} processes x accumulate={config.accumulate} must divide the {shards} "
                f"shards of a batch of {config.batch_size}: set shards and batch_size to multiples of "
                f"{parts}"
            )
        each = shards // parts
        starts = (
            self.accelerator.process_index * config.accumulate + m for m in range(config.accumulate)
        )
        return [range(part * each, (part + 1) * each) for part in starts]

    def _fetch(self, iteration: int) -> list[Any]:
        """This rank's micro-batches of ``iteration``, on its device."""
        config, device = self.config, self.accelerator.device
        if self.batches is None:
            size = config.batch_size // math.gcd(config.batch_size, config.shards)
            places = [range(s.start * size, s.stop * size) for s in self.shards]
            order = ShardedOrder(
                len(self.data),
                config.batch_size,
                places,
                config.seed,
                iteration - 1,
                config.max_steps,
            )
            self.batches = iter(micro_batches(self.data, order, config.workers))
        fetched = [next(self.batches) for _ in self.shards]
        return [(None if x0 is None else x0.to(device), cond.to(device)) for x0, cond in fetched]

    def _draws(self, iteration: int, purpose: str, micro: int) -> Draws:
        shards = self.shards[micro]
        return Draws(self.config.seed, iteration, purpose, shards, self.accelerator.device)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if not self.config.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    def _check_gradients(self, purpose: str, names: tuple[str, ...]) -> None:
        """After the first backward: gradients on all of this loss's roles and on no other."""
        for name, role in self.method.roles.items():
            trained = name in names
            wrong = [k for k, p in role.trainable().items() if (p.grad is not None) != trained]
            if wrong:
                has = (
                    "gives no gradient to" if trained else "must not train, but gives gradients to"
                )
                raise RuntimeError(
                    f"the {purpose} loss {has} {len(wrong)} parameters of the {name}: {wrong[:5]}"
                )
        self._checked.add(purpose)


class _Stop:
    """Set by SIGTERM or SIGINT; the loop asks after each iteration, together on all ranks."""

    def __init__(self) -> None:
        self.flag = False

    def asked(self, accelerator: Accelerator) -> bool:
        if accelerator.num_processes == 1:
            return self.flag
        total = accelerator.reduce(torch.tensor(float(self.flag), device=accelerator.device), "sum")
        return bool(total.item() > 0)


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Catch SIGTERM and SIGINT inside; handlers as they were, after."""
    stop = _Stop()

    def handle(number: int, frame: Any) -> None:
        stop.flag = True

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals go elsewhere
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _due(every: int, iteration: int, last: bool) -> bool:
    return every > 0 and (last or iteration % every == 0)


def _non_finite(purpose: str, iteration: int, role: str, loss: Loss) -> str:
    bad = [term for term, value in loss.logs.items() if not torch.isfinite(value).all()]
    terms = f"its term(s) {', '.join(bad)}" if bad else "its gradient (all terms are finite)"
    return (
        f"NaN or Inf at iteration {iteration} in the {purpose} loss: {terms}, training the {role}. "
        "Nothing was written over: the last checkpoint is from before. Lower the learning rate or "
        "grad_clip, or use bf16=false, and run the same command to go on"
    )


def _memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _trackers(accelerator: Accelerator, run: RunFolder, settings: Mapping[str, Any]) -> bool:
    """Start the trackers the accelerator was made with; False if it has none."""
    if not accelerator.log_with:
        return False
    flat = {k: v for k, v in settings.items() if isinstance(v, int | float | str | bool)}
    accelerator.init_trackers(run.path.name or "run", config=flat)
    return True
