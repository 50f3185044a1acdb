"""Train a text-to-image teacher of the captioned digits: ``digits-t2i`` and ``digits-flow``.

    python -m stepdistill.trainers.text_teacher --output runs/t2i
    python -m stepdistill.trainers.text_teacher --output runs/flow --form flow --width 24 --layers 4

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
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

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
    vae: str = "runs/autoencoder/vae"  # AutoencoderKL
    text: str = "runs/text-encoder"  # the folder of text_encoder/ and tokenizer/
    latents: str = "runs/latents.safetensors"  # the encoded pictures; made if it is not there
    samples: int = 20_000  # pictures to make
    width: int = 32  # of the U-Net's first level, or of each of the transformer's four heads
    layers: int = 1  # in a level of the U-Net, or of the transformer


def unet_pipeline(options: Options) -> StableDiffusionPipeline:
    """Stable Diffusion in small, which hears its prompt from the second level on.

    It predicts v at zero terminal SNR (Lin et al. 2023), so that one step starts from pure noise.
    """
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(options.width, 2 * options.width),
        layers_per_block=options.layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(options.vae).float(),
        CLIPTextModel.from_pretrained(f"{options.text}/text_encoder"),
        CLIPTokenizer.from_pretrained(f"{options.text}/tokenizer"),
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow_pipeline(options: Options) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 in small: both its CLIP encoders are the one there is.

    The pipeline does not load without a T5. Here it is random and frozen, and its one token is the
    end of the text, whatever the prompt.
    """
    text = [
        CLIPTextModelWithProjection.from_pretrained(f"{options.text}/text_encoder") for _ in "12"
    ]
    tokenizers = [CLIPTokenizer.from_pretrained(f"{options.text}/tokenizer") for _ in "12"]
    told = sum(encoder.config.projection_dim for encoder in text)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=options.layers,
        num_attention_heads=4,
        attention_head_dim=options.width,
        caption_projection_dim=4 * options.width,
        joint_attention_dim=told,
        pooled_projection_dim=told,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        AutoencoderKL.from_pretrained(options.vae).float(),
        *(text[0], tokenizers[0], text[1], tokenizers[1]),
        *silent_t5(told),
    )


def silent_t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder of a few thousand weights that knows no word."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=special, extra_ids=0, model_max_length=512)
    sizes = {"d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    config = T5Config(vocab_size=3, d_model=width, feed_forward_proj="gated-gelu", **sizes)
    return T5EncoderModel(config).half().float(), tokenizer


FORMS: dict[str, tuple[Callable[[Options], Any], dict[str, Any]]] = {
    "unet": (unet_pipeline, {}),
    "flow": (flow_pipeline, {"max_tokens": SILENT_TOKENS}),
}
DEFAULTS = {
    "max_steps": 3_300,
    "batch_size": 40,
    "betas": (0.9, 0.99),
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "lr_warmup": 100,
    "lr_decay": 2_000,
    "ema_half_life": 10_000,
    "log_every": 50,
    "method.lr": 1.5e-3,
    "method.uniform_times": True,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the diffusers folder of the averaged weights."""
    flat, nested = (Options, FitConfig), {"method": DenoisingConfig}
    settings = parse(PROGRAM, flat, nested, arguments, DEFAULTS)
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    build, card = FORMS[options.form]
    pipeline = build(options)
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
