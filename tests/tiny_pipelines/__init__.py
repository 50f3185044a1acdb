"""Tiny random pipelines of the stock classes, each whole: encoders, tokenizers, VAE, scheduler.

Built from configurations alone. Every one is saved, loaded in a process that knows only diffusers
and transformers, and run on a CPU with the arguments in ``CALLS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _pytest.mark import ParameterSet
from diffusers import DiffusionPipeline
from PIL import Image

from tiny_pipelines import image, video

PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddpm": image.ddpm,
    "sd15": image.sd15,
    "sd21": image.sd21,
    "sdxl": image.sdxl,
    "pixart-alpha": image.pixart_alpha,
    "pixart-sigma": image.pixart_sigma,
    "dit": image.dit,
    "sd3": image.sd3,
    "flux": image.flux,
    "sana": image.sana,
    "qwen-image": image.qwen_image,
    "z-image": image.z_image,
    "wan-t2v": video.wan_t2v,
    "wan22-t2v": video.wan22_t2v,
    "wan-i2v": video.wan_i2v,
    "wan22-i2v": video.wan22_i2v,
    "cogvideox": video.cogvideox,
    "ltx": video.ltx,
}

SQUARE: dict[str, object] = {"height": 16, "width": 16}
FRAMES: dict[str, object] = {**SQUARE, "num_frames": 9}
FIRST_FRAME = Image.linear_gradient("L").resize((16, 16)).convert("RGB")

# What a call needs beside the prompt to stay tiny. PixArt and Sana would else choose one of the
# resolutions of the large models; DiT takes classes and DDPM nothing at all.
CALLS: dict[str, dict[str, object]] = {
    "ddpm": {},
    "sd15": SQUARE,
    "sd21": SQUARE,
    "sdxl": SQUARE,
    "pixart-alpha": {**SQUARE, "use_resolution_binning": False, "clean_caption": False},
    "pixart-sigma": {**SQUARE, "use_resolution_binning": False, "clean_caption": False},
    "dit": {},
    "sd3": SQUARE,
    "flux": SQUARE,
    "sana": {"height": 32, "width": 32, "use_resolution_binning": False},
    "qwen-image": {"height": 32, "width": 32},
    "z-image": SQUARE,
    "wan-t2v": FRAMES,
    "wan22-t2v": FRAMES,
    "wan-i2v": {**FRAMES, "image": FIRST_FRAME},
    "wan22-i2v": {**FRAMES, "image": FIRST_FRAME},
    "cogvideox": FRAMES,
    "ltx": {"height": 32, "width": 32, "num_frames": 9},
}

FAST = ("sd15", "dit")  # a U-Net, and a transformer told by classes: the others' tests are slow


def some_slow(names: Iterable[str]) -> list[ParameterSet]:
    """``names`` as parameters of a test, slow but for a few."""
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]
