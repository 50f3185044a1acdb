"""The autoencoder's trainer: standardised latents decode as before, and training learns."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from stepdistill.data.captioned_digits import CaptionedDigits
from stepdistill.draws import Draws
from stepdistill.methods import Batch
from trainers.autoencoder import Options, Reconstruction, build, standardise
from trainers.autoencoder import main as train


class Copy(torch.nn.Module):
    """Reconstructs perfectly, at a KL of 2 an element."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x0: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x0 + self.zero, torch.full((len(x0),), 2.0)


def pictures(count: int = 64) -> torch.Tensor:
    return CaptionedDigits().fetch([*range(count)])[0]


@pytest.mark.slow
@torch.no_grad()
def test_standardised_latents_decode_as_before() -> None:
    """z' = (z - m)/s per channel: mean 0, deviation 1, the posterior's deviation divided by s, and
    decode'(z') = decode(z)."""
    torch.manual_seed(0)
    vae, x0 = build(Options("unused")).eval(), pictures()
    own = copy.deepcopy(vae)
    standardise(own, x0)
    before, after = vae.encode(x0).latent_dist, own.encode(x0).latent_dist
    z = torch.cat([after.sample() for _ in range(8)])
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=0.05)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=0.05)
    scale = before.std / after.std
    assert torch.allclose(scale, scale[:1, :, :1, :1].expand_as(scale), rtol=1e-3)
    assert torch.allclose(own.decode(after.mean).sample, vae.decode(before.mean).sample, atol=1e-4)
    assert (own.config.scaling_factor, own.config.shift_factor) == (1.0, 0.0)


def test_a_perfect_reconstruction_costs_its_kl_alone() -> None:
    """Pixels and features give no loss where x0_hat = x0."""
    options = Options("unused", kl_weight=0.5)
    method = Reconstruction(Copy(), options)
    x0, cond = CaptionedDigits().fetch([*range(8)])
    loss = method.generator_loss(Batch(x0, cond, Draws(0, 1, "generator")))
    assert float(loss.value.detach()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_training_writes_a_vae(tmp_path: Path) -> None:
    """A few iterations lower the loss; the folder loads, with unit latents on fresh pictures."""
    options = ("--max_steps=30", "--lr_warmup=1", "--lr_decay=1", "--log_every=1")
    train([f"--output={tmp_path}", "--batch_size=16", "--test_samples=1000", *options])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["generator/pixels"] < 0.7 * lines[0]["generator/pixels"]
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    with torch.no_grad():
        z = vae.encode(pictures()).latent_dist.sample()
    assert z.shape == (64, 4, 8, 8)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=0.1)
    assert (tmp_path / "reconstructions.png").exists()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["reconstructions"]["num_samples"] == 1_000
