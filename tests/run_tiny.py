"""A tiny real run for the tests of the loop: DMD2 with a GAN, or ECT, towards the exact 2-D ring.

    python tests/run_tiny.py FOLDER '{"method": "dmd2", "dropout": 0.1, "fit": {"max_steps": 40}}'

Imports neither diffusers nor peft. ``start`` runs it in a child of multiprocessing's fork server, a
fresh interpreter that has torch imported already, so that a start takes no seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn

from stepdistill import checkpoint
from stepdistill.backbones.exact import GaussianMixture, ring
from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.cli import guarded
from stepdistill.conditioning import Conditioning
from stepdistill.data import TensorData
from stepdistill.denoisers import Denoiser, PredictsEDM
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.ema import EMA
from stepdistill.fit import FitConfig, FitResult, fit
from stepdistill.methods import DMD2, ECT, DMD2Config, ECTConfig
from stepdistill.methods.base import Batch, Loss, Method
from stepdistill.plans import StepPlan
from stepdistill.roles import Role, full
from stepdistill.runs import RunFolder, read_metrics
from stepdistill.schedules import EDMSchedule

torch.set_num_threads(1)

SCHEDULE = EDMSchedule(0.02, 20.0)
MODES = 8
# fields of metrics.jsonl that differ between runs
CLOCKED = ("images_per_second", "memory_gb", "eval/seconds")


@dataclass(frozen=True)
class Tiny:
    """What to run. ``fit`` are settings of the loop beside those below."""

    method: str = "dmd2"
    critic_steps: int = 2
    gan: bool = True
    through_all_steps: bool = False
    dropout: float = 0.0
    labelled: bool = True
    double: bool = False
    samples: int = 50
    fit: dict[str, Any] = field(default_factory=dict)

    def config(self) -> FitConfig:
        """Settings of the loop: small, and everything that can matter is switched on."""
        small = {"max_steps": 20, "batch_size": 8, "save_every": 1000, "log_every": 1}
        moving = {"ema_half_life": 100, "grad_clip": 1.0, "lr_warmup": 5}
        return FitConfig(**{**small, **moving, **self.fit})


def network(tiny: Tiny, seed: int = 0) -> Denoiser:
    """A random denoiser of vectors, frozen and in eval mode like a teacher's."""
    torch.manual_seed(seed)
    mlp = MLP(2, width=16, depth=2, num_class_embeds=MODES if tiny.labelled else None)
    for parameter in mlp.outward.parameters():
        nn.init.normal_(parameter, std=0.1)  # they start at zero, which hides mistakes
    if tiny.dropout:
        for block in mlp.blocks:
            block.insert(1, nn.Dropout(tiny.dropout))
    denoiser = Denoiser(VectorBackbone(mlp), SCHEDULE, PredictsEDM(1.5, boundary=0.02))
    return denoiser.eval().requires_grad_(False)


def samples(tiny: Tiny, teacher: GaussianMixture) -> TensorData:
    """Real samples of the ring, and their modes as labels."""
    generator = torch.Generator().manual_seed(1)
    component = torch.randint(MODES, (tiny.samples,), generator=generator)
    x0 = teacher.sample(torch.randn(tiny.samples, 2, generator=generator), component)
    labels = {"class_labels": component} if tiny.labelled else {}
    return TensorData(x0, Conditioning(labels, tiny.samples))


def build(tiny: Tiny) -> tuple[Method, TensorData]:
    """The method and its data, the same in every process."""
    teacher = ring(SCHEDULE, MODES)
    data = samples(tiny, teacher)
    origin = network(tiny)
    generator = full("generator", origin)
    if tiny.method == "ect":
        return ECT(generator, StepPlan(), ECTConfig(lr=1e-3, double_every=8)), data
    config = DMD2Config(
        generator_lr=1e-3,
        critic_lr=2e-3,
        critic_steps=tiny.critic_steps,
        gan_weight=0.1 if tiny.gan else 0.0,
        gan_critic_weight=0.2,
        through_all_steps=tiny.through_all_steps,
        r1_weight=0.5,
        r1_std=0.1,
    )
    gan = CriticTrunk(build_head(origin, (2,), data.cond)) if tiny.gan else None
    plan, critic = StepPlan.uniform(2), full("critic", origin)
    method = DMD2(generator, critic, teacher, plan, config, sample_shape=(2,), discriminator=gan)
    return method, data


@contextlib.contextmanager
def precision(double: bool) -> Iterator[None]:
    """float64 networks, samples and noise inside, if asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(tiny: Tiny, folder: Path | str, **options: Any) -> FitResult:
    """Build and fit; ``options`` go to ``fit``."""
    with precision(tiny.double):
        method, data = build(tiny)
        return fit(method, data, tiny.config(), folder, **options)


def state(folder: Path | str) -> dict[str, torch.Tensor]:
    """Weights, average and moments of the newest checkpoint."""
    return load_file(checkpoint.complete(RunFolder(folder).checkpoints)[-1] / checkpoint.WEIGHTS)


def history(folder: Path | str) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or the machine decides."""
    lines = read_metrics(RunFolder(folder).metrics)
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


# --- what tests ask of runs ---------------------------------------------------------------------


def go(method: Any, data: Any, folder: Path, **settings: Any) -> FitResult:
    """Fit with tiny settings; those that are no setting of the loop go to ``fit`` itself."""
    names = ("evaluate", "draw_samples", "resume", "settings")
    own = {name: settings.pop(name) for name in names if name in settings}
    return fit(method, data, Tiny(fit=settings).config(), folder, **own)


def saved(folder: Path) -> list[str]:
    """The names of its whole checkpoints."""
    return [path.name for path in checkpoint.complete(RunFolder(folder).checkpoints)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same tensors under the same names, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Stub:
    """A method without mathematics: each role is one weight, each loss the sum of some of them."""

    def __init__(self, critic_steps: int = 1, critic: bool = True) -> None:
        rates = {"critic": 2e-2, "head": 3e-2, "generator": 1e-2}
        self.plan = StepPlan()
        self.learning_rates = rates if critic else {"generator": 1e-2}
        self.roles = {n: Role(n, nn.Linear(1, 1, bias=False)) for n in self.learning_rates}
        self.updates = {"critic": ("critic", "head")} if critic else {}
        self.updates["generator"] = ("generator",)
        self.critic_steps = critic_steps

    def critic_loss(self, batch: Batch) -> Loss:
        """The weights of critic and head."""
        return self._loss("critic", "head")

    def generator_loss(self, batch: Batch) -> Loss:
        """The weight of the generator."""
        return self._loss("generator")

    def _loss(self, *names: str) -> Loss:
        value = torch.stack([self.roles[name](torch.ones(1, 1)).sum() for name in names]).sum()
        return Loss(value, {"size": value.detach()})


def numbers(count: int = 64) -> TensorData:
    """Samples for a Stub."""
    return TensorData(torch.arange(float(count))[:, None], Conditioning.empty(count))


# --- children ----------------------------------------------------------------------------------


def start(
    tiny: Tiny, folder: Path, death: str = "", rank: int = 0, ranks: int = 1, port: int = 0
) -> BaseProcess:
    """Run in a child process, one rank of ``ranks``; its stderr goes to ``folder``.stderrN."""
    return launch(_run_until, (tiny, folder, death), folder, rank, ranks, port)


def launch(
    target: Callable[..., object],
    arguments: tuple[Any, ...],
    folder: Path,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
) -> BaseProcess:
    """``target(*arguments)`` likewise; it is a module's function, since the child imports it."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
    environment = environment if ranks > 1 else {}
    log = folder.with_name(f"{folder.name}.stderr{rank}")
    process = _fork_server().Process(target=_child, args=(target, arguments, environment, log))
    process.start()
    return process


def _fork_server() -> Any:
    """The context of a server that has imported this file."""
    context = multiprocessing.get_context("forkserver")
    slow = ["torch._dynamo", "torch.distributed.tensor"]  # torch imports them at the first step
    context.set_forkserver_preload(["run_tiny", *slow])
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent)))
    with mock.patch.dict(os.environ, PYTHONPATH=paths):
        forkserver.ensure_running()
    return context


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def stderr_of(folder: Path, rank: int = 0) -> str:
    """What the children of ``folder`` have printed there."""
    return folder.with_name(f"{folder.name}.stderr{rank}").read_text()


def wait_for_line(process: BaseProcess, folder: Path, iteration: int) -> None:
    """Until metrics.jsonl tells of ``iteration``; AssertionError if the process ends before."""
    limit = time.monotonic() + 60
    while not any(
        line["iteration"] >= iteration for line in read_metrics(folder / "metrics.jsonl")
    ):
        assert process.is_alive(), stderr_of(folder)
        assert time.monotonic() < limit, "no progress in a minute"
        time.sleep(0.001)


def _child(
    target: Callable[..., object],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    stderr: Path,
) -> None:
    os.environ.update(environment)
    with stderr.open("a") as log:
        os.dup2(log.fileno(), 2)
    guarded(lambda: target(*arguments))


def _run_until(tiny: Tiny, folder: Path, death: str) -> None:
    if death:
        _die_at(death)
    run(tiny, folder)


# --- kills at chosen places --------------------------------------------------------------------

PLACES = ("step", "line", "write", "index", "rename", "renamed", "prune")


def _die_at(place: str) -> None:
    """kill -9 of this process when it first comes to ``place`` after two checkpoints."""
    save_file, replace, rmtree, log = checkpoint.save_file, os.replace, shutil.rmtree, RunFolder.log
    saved = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved > 2 and place == "full":  # no kill: the system refuses to write on
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        save_file(tensors, path)
        if saved > 2 and place == "write":
            os.truncate(path, path.stat().st_size // 2)
            die()
        if saved > 2 and place == "index":
            die()

    def dying_replace(source: Path, target: Path) -> None:
        is_checkpoint = saved > 2 and Path(target).name.isdigit()
        if is_checkpoint and place == "rename":
            die()
        replace(source, target)
        if is_checkpoint and place == "renamed":
            die()

    def dying_rmtree(path: Path, **options: Any) -> None:
        if saved > 2 and place == "prune" and Path(path).suffix == checkpoint.REMOVED:
            (path / checkpoint.WEIGHTS).unlink()
            die()
        rmtree(path, **options)

    def dying_log(folder: RunFolder, record: dict[str, Any]) -> None:
        if saved > 2 and place == "line":
            with folder.metrics.open("a") as file:
                file.write(json.dumps(record)[:30])
            die()
        log(folder, record)

    def dying_update(ema: EMA, images: int, images_seen: int) -> None:
        if saved > 2 and place == "step":
            die()
        update(ema, images, images_seen)

    update: Callable[[EMA, int, int], None] = EMA.update
    checkpoint.save_file, os.replace, shutil.rmtree = dying_save, dying_replace, dying_rmtree
    RunFolder.log, EMA.update = dying_log, dying_update  # type: ignore[method-assign]


if __name__ == "__main__":
    guarded(lambda: run(Tiny(**json.loads(sys.argv[2])), sys.argv[1]))
