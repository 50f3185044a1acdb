"""Which modes a generator that is too small keeps, by the divergence it descends.

    python -m stepdistill.evals.mode_coverage --output evals/records/matching/mode_coverage.json

The teacher is exact: eight Gaussians on a circle. f-distill trains a one-step generator of a few
hundred weights under each divergence, with a full critic, and the GAN only as the ratio's source:
its own term is weighed next to nothing. A mode is kept if a part of all samples lies near it; the
effective number of modes is exp of the entropy of the samples near any. The plot lies beside the
record.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from stepdistill.backbones.exact import GaussianMixture, ring
from stepdistill.backbones.mlp import MLP, VectorBackbone
from stepdistill.cli import guarded
from stepdistill.conditioning import Conditioning
from stepdistill.config import parse
from stepdistill.data import TensorData
from stepdistill.denoisers import Denoiser, PredictsEDM
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.divergences import DIVERGENCES
from stepdistill.evaluation.options import writable
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import FDistill, FDistillConfig
from stepdistill.plans import StepPlan, start
from stepdistill.roles import full
from stepdistill.schedules import EDMSchedule

SCHEDULE = EDMSchedule(sigma_min=0.02, sigma_max=10.0)
STD, MODES, SAMPLES = 0.2, 8, 20_000
NEAR = 3 * STD  # of a centre


@dataclass(frozen=True)
class Options:
    """Train small generators on the exact ring of eight modes, and count the modes they keep.

    Args:
        output: the JSON record; the plot lies beside it as .png
        divergences: names of stepdistill.divergences
        seeds: trainings of each
        width: of the generator's one hidden block
        max_steps: iterations
        kept: the part of all samples near a mode that counts as keeping it
    """

    output: str
    divergences: tuple[str, ...] = ("reverse_kl", "jensen_shannon", "forward_kl")
    seeds: int = 5
    width: int = 4
    max_steps: int = 2_000
    kept: float = 0.02


def network(width: int, depth: int) -> Denoiser:
    """A denoiser of vectors from random weights."""
    return Denoiser(VectorBackbone(MLP(2, width, depth)), SCHEDULE, PredictsEDM(sigma_data=1.43))


def trained(divergence: str, seed: int, options: Options) -> Tensor:
    """Samples (N, 2) of a generator that was trained under ``divergence``."""
    torch.manual_seed(seed)
    teacher: Any = ring(SCHEDULE, MODES, std=STD)
    generator, origin = full("generator", network(options.width, 1)), network(128, 3)
    config = FDistillConfig(
        generator_lr=1e-3,
        critic_lr=2e-3,
        critic_steps=2,
        gan_weight=1e-9,
        gan_critic_weight=0.1,
        matching_log_normal=(-0.7, 1.0),
        critic_log_normal=(-0.7, 1.3),
        divergence=divergence,
        bin_decay=0.95,
        ramp=300,
    )
    method = FDistill(
        generator,
        full("critic", origin),
        teacher,
        StepPlan(),
        config,
        sample_shape=(2,),
        discriminator=CriticTrunk(build_head(origin, (2,), Conditioning.empty(1))),
        divergence=DIVERGENCES[divergence],
    )
    loop = FitConfig(
        max_steps=options.max_steps,
        batch_size=256,
        shards=1,
        betas=(0.0, 0.99),
        lr_decay=options.max_steps // 2,
        ema_half_life=1e6,
        ema_rampup=0.1,
        seed=seed,
        save_every=options.max_steps,
        log_every=500,
    )
    with tempfile.TemporaryDirectory() as folder:
        ema = fit(method, real(teacher), loop, folder).ema
    x_t = start(method.plan, SCHEDULE, torch.randn(SAMPLES, 2))
    with ema.applied(), torch.no_grad():
        found = generator.frozen(x_t, method.plan.time(0, x_t), Conditioning.empty(SAMPLES))
    x0: Tensor = found.x0_hat
    return x0


def real(teacher: GaussianMixture) -> TensorData:
    """Samples of the ring."""
    x0 = teacher.sample(torch.randn(SAMPLES, 2), torch.randint(MODES, (SAMPLES,)))
    return TensorData(x0, Conditioning.empty(SAMPLES))


def shares(samples: Tensor, centres: Tensor) -> Tensor:
    """The part of all samples that lies near each mode (K,)."""
    distance, mode = torch.cdist(samples, centres).min(dim=1)
    return torch.bincount(mode[distance < NEAR], minlength=len(centres)) / len(samples)


def counted(share: Tensor, kept: float) -> dict[str, Any]:
    """Modes kept, their effective number, and the part of samples near any."""
    near = share.sum()
    p = share / near
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {
        "kept": int((share >= kept).sum()),
        "effective": float(entropy.exp()),
        "near": float(near),
        "shares": share.tolist(),
    }


def plot(rows: dict[str, list[dict[str, Any]]], samples: dict[str, Tensor], path: Path) -> None:
    """Samples of the first seed under each divergence, and the modes kept over all seeds."""
    figure = Figure(figsize=(3.2 * (len(rows) + 1), 3.4), layout="constrained")
    axes = figure.subplots(1, len(rows) + 1)
    centres = ring(SCHEDULE, MODES, std=STD).means
    for axis, (name, x0) in zip(axes, samples.items(), strict=False):
        axis.scatter(*x0[:3000].T, s=1, alpha=0.35, color="#3366aa", linewidths=0)
        axis.scatter(*centres.T, s=90, facecolors="none", edgecolors="#cc4422", linewidths=1.2)
        axis.set(title=name.replace("_", " "), xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
        axis.set(xticks=[], yticks=[])
    bars = axes[-1]
    for place, own in enumerate(rows.values()):
        values = [row["effective"] for row in own]
        bars.bar(place, statistics.mean(values), color="#b8c8e0", width=0.6)
        bars.scatter([place] * len(values), values, s=14, color="#223355", zorder=3)
    labels = [name.replace("_", "\n") for name in rows]
    bars.set(title="effective modes of 8", ylim=(0, 8.2))
    bars.set_xticks(range(len(rows)), labels)
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, count, print, and write the record and the plot."""
    options = parse("stepdistill.evals.mode_coverage", (Options,), {}, arguments).get(Options)
    output = writable(Path(options.output))
    centres = ring(SCHEDULE, MODES, std=STD).means.float()
    rows: dict[str, list[dict[str, Any]]] = {}
    first: dict[str, Tensor] = {}
    for name in options.divergences:
        for seed in range(options.seeds):
            x0 = trained(name, seed, options)
            first.setdefault(name, x0)
            rows.setdefault(name, []).append(counted(shares(x0, centres), options.kept))
            print(name, seed, json.dumps(rows[name][-1]), flush=True)
    means = {
        name: {
            key: statistics.mean(row[key] for row in own) for key in ("kept", "effective", "near")
        }
        for name, own in rows.items()
    }
    record = {"settings": asdict(options), "means": means, "runs": rows}
    output.write_text(json.dumps(record, indent=1) + "\n")
    plot(rows, first, output.with_suffix(".png"))
    print(json.dumps(means, indent=1))


if __name__ == "__main__":
    guarded(main)
