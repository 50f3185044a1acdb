"""Train the digit classifier whose features the built-in world is measured on.

python -m stepdistill.trainers.classifier --output runs/classifier
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.digits import digits, digits_data
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import Batch, Loss
from stepdistill.metrics.extractors.digits import DigitClassifier
from stepdistill.roles import Role


class Classification:
    """Cross-entropy with label smoothing on shifted and noised digits."""

    def __init__(self, network: DigitClassifier, lr: float) -> None:
        self.roles = {"generator": Role("generator", network)}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": lr}
        self.critic_steps = 1
        self.needs_data = True

    def generator_loss(self, batch: Batch) -> Loss:
        """On half of the images a shift by one pixel; noise of a standard deviation U(0, 0.3]."""
        assert batch.x0 is not None
        x0 = self._shifted(batch.x0, batch)
        std = batch.draws.uniform(len(x0), 0, 0.3).to(x0).reshape(-1, 1, 1, 1)
        logits = self.roles["generator"](x0 + std * batch.draws.normal_like(x0))
        loss = F.cross_entropy(logits, batch.cond["class_labels"], label_smoothing=0.1)
        accuracy = (logits.argmax(1) == batch.cond["class_labels"]).float().mean()
        return Loss(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy})

    @staticmethod
    def _shifted(x0: Tensor, batch: Batch) -> Tensor:
        """Each image moved by (dy, dx) in {-1, 0, 1}^2, empty pixels (-1) moving in."""
        u = torch.stack([batch.draws.uniform(len(x0)) for _ in range(2)], dim=1)
        moved = batch.draws.uniform(len(x0)) > 0.5
        offset = (u * 3).ceil().long() - 2  # -1, 0 or 1
        offset = torch.where(moved[:, None], offset, 0)
        padded = F.pad(x0, (1, 1, 1, 1), value=-1.0)
        rows = torch.arange(8) + 1 + offset[:, :1]
        columns = torch.arange(8) + 1 + offset[:, 1:]
        return padded[torch.arange(len(x0))[:, None, None], 0, rows[:, :, None], columns[:, None]][
            :, None
        ]


@dataclass(frozen=True)
class Options:
    """Train the digit classifier; its weights lie in ``output``/classifier."""

    output: str  # the run folder
    lr: float = 2e-3  # learning rate


DEFAULTS = {
    "max_steps": 850,
    "betas": (0.9, 0.99),
    "lr_warmup": 50,
    "lr_decay": 800,
    "ema_half_life": 2_000,
    "log_every": 50,
}


def main(arguments: list[str] | None = None) -> None:
    """Train, report the accuracy on the training images, and save the average."""
    settings = parse(
        "stepdistill.trainers.classifier", (Options, FitConfig), {}, arguments, DEFAULTS
    )
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    network = DigitClassifier()
    result = fit(Classification(network, options.lr), digits_data(), config, options.output)
    folder = Path(options.output) / "classifier"
    folder.mkdir(parents=True, exist_ok=True)
    x0, labels = digits()
    noisy = x0 + 0.3 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with result.ema.applied(), torch.no_grad():
        network.eval()
        record = {
            "accuracy": float((network(x0).argmax(1) == labels).float().mean()),
            "accuracy_at_noise_0.3": float((network(noisy).argmax(1) == labels).float().mean()),
            "parameters": sum(p.numel() for p in network.parameters()),
            "settings": {k: v for k, v in settings.resolved.items() if k != "output"},
        }
        save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    guarded(main)
