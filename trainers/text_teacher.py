"""Train a text-to-image teacher of the captioned digits: ``digits-t2i`` and ``digits-flow``.

    python -m stepdistill.trainers.text_teacher --output runs/t2i
    python -m stepdistill.trainers.text_teacher --output runs/flow --form flow --width 24 \\
        --layers 4 --max_steps 10000 --lr_decay 4000 --method.lr 1e-3

The parts are what ``trainers/autoencoder`` and ``trainers/text_encoder`` wrote. The folder
``OUTPUT/teacher`` is a stock StableDiffusionPipeline or StableDiffusion3Pipeline in float16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from stepdistill.trainers.text_pipelines import Parts, flow_pipeline, unet_pipeline

from stepdistill import families
from stepdistill.backbones.latent import LatentFamily
from stepdistill.cli import guarded
from stepdistill.config import parse, write_yaml
from stepdistill.data.captioned_digits import evaluation_prompts
from stepdistill.data.captioned_latents import CaptionedLatents
from stepdistill.fit import FitConfig, fit
from stepdistill.methods.denoising import Denoising, DenoisingConfig
from stepdistill.roles import Role
from stepdistill.runs import RunFolder
from stepdistill.teachers import CARD, LoadOptions

PROGRAM = "stepdistill.trainers.text_teacher"
EXAMPLES = 8  # prompts of the card, to try the teacher with
SILENT_TOKENS = 1  # of the T5 encoder: the end of its text, whatever the prompt


@dataclass(frozen=True)
class Options:
    """Train a text-to-image teacher of the captioned digits."""

    output: str  # the run folder
    form: Literal["unet", "flow"] = "unet"  # as StableDiffusionPipeline, or as Stable Diffusion 3
    latents: str = "runs/latents.safetensors"  # the encoded pictures; made if it is not there
    samples: int = 40_000  # pictures to make


FORMS: dict[str, tuple[Callable[[Parts], Any], dict[str, Any]]] = {
    "unet": (unet_pipeline, {}),
    "flow": (flow_pipeline, {"max_tokens": SILENT_TOKENS}),
}
DEFAULTS = {
    "max_steps": 14_000,
    "batch_size": 48,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "lr_warmup": 100,
    "lr_decay": 5_000,
    "ema_half_life": 30_000,
    "log_every": 50,
    "method.lr": 1.5e-3,
    "method.uniform_times": True,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the diffusers folder of the averaged weights."""
    flat, nested = (Options, Parts, FitConfig), {"method": DenoisingConfig}
    settings = parse(PROGRAM, flat, nested, arguments, DEFAULTS)
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    build, card = FORMS[options.form]
    pipeline = build(settings.get(Parts))
    family = families.of_pipeline(type(pipeline).__name__, options.form)
    assert isinstance(family, LatentFamily)
    teacher = family.teacher(pipeline, options.output, LoadOptions(**card))
    path = Path(options.latents)
    if not path.exists():
        encode = partial(family.encode_images, teacher)
        CaptionedLatents.of(encode, options.samples).save(path)
    data = CaptionedLatents.load(path).told(teacher.encode)
    role = Role("generator", teacher.denoiser.requires_grad_(True).train())
    method = Denoising(role, settings.get(DenoisingConfig), teacher.null_cond)
    with RunFolder(options.output) as run:
        write_yaml(settings.resolved, run.path / "config.yaml", f"python -m {PROGRAM}")
        result = fit(method, data, config, run, settings=settings.resolved["method"])
        if result.interrupted:
            return
        folder = run.path / "teacher"
        made_with = {k: v for k, v in settings.resolved.items() if k != "output"}
        prompts = [prompt.text for prompt in evaluation_prompts()[:EXAMPLES]]
        with result.ema.applied():
            write(pipeline.to("cpu"), folder, {**card, "prompts": prompts, "settings": made_with})
    print(folder)


def write(pipeline: Any, folder: Path, card: dict[str, Any]) -> None:
    """Save the pipeline with its card; the weights are halved only in the files.

    The configs still say float32, which transformers would otherwise load its encoders in.
    """
    pipeline.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        halved = {name: weight.half() for name, weight in load_file(path).items()}
        save_file(halved, path, {"format": "pt"})
    (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    guarded(main)
