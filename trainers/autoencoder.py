"""Train the small autoencoder of the captioned digits, 3 x 32 x 32 pictures to 4 x 8 x 8 latents.

    python -m stepdistill.trainers.autoencoder --output runs/autoencoder

``OUTPUT/vae`` is diffusers' ``AutoencoderKL`` in float16. Each channel of its latents has mean 0
and standard deviation 1 over the data (scaling_factor 1, no shift), so that it serves pipelines
with and without a shift.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.captioned_digits import Caption, CaptionedDigits, real_pictures
from stepdistill.fit import FitConfig, fit
from stepdistill.grids import save_grid
from stepdistill.methods import Batch, Loss
from stepdistill.metrics.caption_quality import caption_floor, measure_captioned
from stepdistill.metrics.extractors.scenes import load_scene_classifier
from stepdistill.plans import StepPlan
from stepdistill.roles import Role

FRESH = 1  # the seed of pictures that no training sees


@dataclass(frozen=True)
class Options:
    """Train the autoencoder of the captioned digits."""

    output: str  # the run folder
    lr: float = 2e-3  # learning rate
    widths: tuple[int, ...] = (16, 32, 32)  # block_out_channels of AutoencoderKL
    kl_weight: float = 3e-4  # of the mean over latent elements, against an L1 mean over pixels
    feature_weight: float = 0.03  # of the squared error of the scene classifier's features
    test_samples: int = 5_000  # pictures for the record


def build(options: Options) -> AutoencoderKL:
    """Stable Diffusion's autoencoder in small, without attention."""
    return AutoencoderKL(
        block_out_channels=options.widths,
        down_block_types=("DownEncoderBlock2D",) * len(options.widths),
        up_block_types=("UpDecoderBlock2D",) * len(options.widths),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


class Autoencoding(nn.Module):
    """x0 (B, 3, 32, 32) and eps (B, 4, 8, 8) -> the reconstruction, and the posterior's KL."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The KL to N(0, 1) is a mean over latent elements, (B,)."""
        posterior = self.vae.encode(x0).latent_dist
        x0_hat = self.vae.decode(posterior.mean + posterior.std * eps).sample
        return x0_hat, posterior.kl() / eps[0].numel()


class Reconstruction:
    """L1 of the pixels, squared error of the scene classifier's features, and a little KL."""

    def __init__(self, autoencoder: nn.Module, options: Options) -> None:
        self.options = options
        self.classifier = load_scene_classifier()
        self.plan = StepPlan()
        self.roles = {"generator": Role("generator", autoencoder)}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": options.lr}
        self.critic_steps = 1
        self.needs_data = True

    def generator_loss(self, batch: Batch) -> Loss:
        """On posterior samples, so that the decoder bears some noise."""
        assert batch.x0 is not None
        x0 = batch.x0
        x0_hat, kl = self.roles["generator"](x0, batch.draws.normal(len(x0), 4, 8, 8))
        pixels = (x0_hat - x0).abs().mean()
        with torch.no_grad():
            real = self.classifier.features(x0)
        features = F.mse_loss(self.classifier.features(x0_hat), real)
        own = self.options
        value = pixels + own.feature_weight * features + own.kl_weight * kl.mean()
        terms = {"pixels": pixels, "features": features, "kl": kl.mean()}
        return Loss(value, {name: term.detach() for name, term in terms.items()})


@torch.no_grad()
def standardise(vae: AutoencoderKL, x0: Tensor) -> None:
    """Give the latents of ``x0`` mean 0 and standard deviation 1 in each channel.

    z' = (z - m) / s is folded into the 1x1 convolutions around the latents, so that decoding gives
    the same pictures as before.
    """
    seeded = torch.Generator().manual_seed(0)
    z = torch.cat([vae.encode(part).latent_dist.sample(seeded) for part in x0.split(500)])
    m, s = z.mean((0, 2, 3)), z.std((0, 2, 3))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    decode.bias += decode.weight[:, :, 0, 0] @ m
    decode.weight *= s[None, :, None, None]
    channels = len(m)
    encode.bias[:channels] -= m
    encode.bias[:channels] /= s
    encode.weight[:channels] /= s[:, None, None, None]
    encode.bias[channels:] -= 2 * s.log()  # log variances


@torch.no_grad()
def psnr(vae: AutoencoderKL, x0: Tensor) -> float:
    """10 log10(range^2 / mean squared error) of each picture, on average, in decibels."""
    x0_hat = vae.decode(vae.encode(x0).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (x0_hat - x0).square().mean((1, 2, 3)))).mean())


@torch.no_grad()
def quality(vae: AutoencoderKL, x0: Tensor, count: int) -> dict[str, Any]:
    """PSNR and the scale of the latents on ``x0``; and how ``count`` reconstructions of real
    pictures of the evaluation prompts measure as samples."""

    def reconstructed(prompts: Sequence[Caption], seeds: range) -> Tensor:
        x0_hat: Tensor = vae.decode(vae.encode(real_pictures(prompts, seeds)).latent_dist.mean)[0]
        return x0_hat

    posterior = vae.encode(x0).latent_dist
    z = posterior.sample(torch.Generator().manual_seed(0))
    return {
        "psnr": psnr(vae, x0),
        "reconstructions": measure_captioned(reconstructed, count).record(),
        "floor": caption_floor(count).record(),
        "latent_mean": z.mean((0, 2, 3)).tolist(),
        "latent_std": z.std((0, 2, 3)).tolist(),
        "posterior_std": float(posterior.std.mean()),
    }


DEFAULTS = {
    "max_steps": 2_200,
    "batch_size": 32,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "lr_warmup": 50,
    "lr_decay": 1_600,
    "ema_half_life": 5_000,
    "log_every": 50,
}


def main(arguments: list[str] | None = None) -> None:
    """Train, standardise the latents, save the average in float16, and record its quality."""
    settings = parse(
        "stepdistill.trainers.autoencoder", (Options, FitConfig), {}, arguments, DEFAULTS
    )
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    vae = build(options)
    data, folder = CaptionedDigits(), Path(options.output)
    result = fit(Reconstruction(Autoencoding(vae), options), data, config, folder)
    with result.ema.applied(), torch.no_grad():
        vae.eval()
        standardise(vae, data.fetch([*range(2_000)])[0])
        fresh, _ = CaptionedDigits(seed=FRESH).fetch([*range(2_000)])
        exact = psnr(vae, fresh)
        vae.half().save_pretrained(folder / "vae")
        vae.float()  # as a pipeline in float32 loads it
        shown = fresh[:12]
        again = vae.decode(vae.encode(shown).latent_dist.mean).sample
        save_grid([shown, again], folder / "reconstructions.png", scale=3)
        record = {
            **quality(vae, fresh, options.test_samples),
            "psnr_in_float32": exact,
            "parameters": sum(p.numel() for p in vae.parameters()),
            "settings": {k: v for k, v in settings.resolved.items() if k != "output"},
        }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    guarded(main)
