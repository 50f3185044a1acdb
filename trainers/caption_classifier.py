"""Train the scene classifier that the captioned digits are measured with.

python -m stepdistill.trainers.caption_classifier --output runs/caption-classifier
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.captioned_digits import CaptionedDigits
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import Batch, Loss
from stepdistill.metrics.extractors.scenes import (
    SceneClassifier,
    accuracies,
    load_scene_classifier,
)
from stepdistill.plans import StepPlan
from stepdistill.roles import Role

FRESH = 1  # the seed of scenes that no training sees


class SceneClassification:
    """Cross-entropy of every attribute that the scene has, with label smoothing, on noised
    pictures."""

    def __init__(self, network: SceneClassifier, lr: float, noise: float) -> None:
        self.noise = noise
        self.plan = StepPlan()
        self.roles = {"generator": Role("generator", network)}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": lr}
        self.critic_steps = 1
        self.needs_data = True

    def generator_loss(self, batch: Batch) -> Loss:
        """Noise of a standard deviation U(0, noise]."""
        assert batch.x0 is not None
        x0, scene = batch.x0, batch.cond["scene"]
        std = batch.draws.uniform(len(x0), 0, self.noise).to(x0).reshape(-1, 1, 1, 1)
        logits = self.roles["generator"](x0 + std * batch.draws.normal_like(x0))
        loss = sum(
            F.cross_entropy(own, scene[:, i], ignore_index=-1, label_smoothing=0.1)
            for i, own in enumerate(logits)
        )
        predicted = torch.stack([own.argmax(1) for own in logits], dim=1)
        accuracy = ((predicted == scene) | (scene < 0)).all(1).float().mean()
        return Loss(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy})


@dataclass(frozen=True)
class Options:
    """Train the scene classifier; its weights lie in ``output``/classifier."""

    output: str  # the run folder
    lr: float = 2e-3  # learning rate
    noise: float = 0.3  # largest standard deviation of the noise on the pictures
    test_samples: int = 5_000  # fresh scenes for the record


DEFAULTS = {
    "max_steps": 1_800,
    "batch_size": 128,
    "betas": (0.9, 0.99),
    "lr_warmup": 100,
    "lr_decay": 1_500,
    "ema_half_life": 10_000,
    "log_every": 50,
}


def main(arguments: list[str] | None = None) -> None:
    """Train, save the average in float16, and record its accuracy on fresh pictures."""
    settings = parse(
        "stepdistill.trainers.caption_classifier", (Options, FitConfig), {}, arguments, DEFAULTS
    )
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    network = SceneClassifier()
    method = SceneClassification(network, options.lr, options.noise)
    result = fit(method, CaptionedDigits(), config, options.output)
    folder = Path(options.output) / "classifier"
    folder.mkdir(parents=True, exist_ok=True)
    with result.ema.applied():
        weights = {name: w.half().contiguous() for name, w in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    fresh = CaptionedDigits(count=options.test_samples, seed=FRESH)
    record = {
        "accuracy": accuracies(load_scene_classifier(folder / "model.safetensors"), fresh),
        "parameters": sum(p.numel() for p in network.parameters()),
        "settings": {k: v for k, v in settings.resolved.items() if k != "output"},
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    guarded(main)
