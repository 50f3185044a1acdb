"""The families that stepdistill knows, by the pipeline class that a diffusers folder names.

Adapters live in ``backbones/`` and are imported on first use. Someone else's is registered with
:func:`register`, or by an installed package with an entry point of the group
``stepdistill.families`` that names the class.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .backbones.family import Family

GUIDE = "`python -m pydoc stepdistill.backbones.family` says how to write an adapter"

# pipeline class -> module in backbones/ and class there
BUILT_IN = {
    "CogVideoXPipeline": ("cogvideox", "CogVideoX"),
    "ConsistencyModelPipeline": ("pixel", "EDMPixels"),
    "DDPMPipeline": ("ddpm", "DDPMPixels"),
    "DiTPipeline": ("dit", "DiT"),
    "FluxPipeline": ("flux", "Flux"),
    "PixArtAlphaPipeline": ("pixart", "PixArtAlpha"),
    "PixArtSigmaPipeline": ("pixart", "PixArtSigma"),
    "QwenImagePipeline": ("qwen_image", "QwenImage"),
    "SanaPipeline": ("sana", "Sana"),
    "StableDiffusion3Pipeline": ("sd3", "StableDiffusion3"),
    "StableDiffusionPipeline": ("sd", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("sdxl", "StableDiffusionXL"),
    "WanImageToVideoPipeline": ("wan", "WanImageToVideo"),
    "WanPipeline": ("wan", "WanTextToVideo"),
    "ZImagePipeline": ("z_image", "ZImage"),
}

_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make ``family`` the adapter of its pipeline class, in this process."""
    _registered[family.card.pipeline] = family


def known() -> list[str]:
    """The pipeline classes that have an adapter, sorted."""
    return sorted({*BUILT_IN, *_registered, *_installed()})


def of_pipeline(pipeline: str, source: str) -> Family:
    """The adapter of a pipeline class; ``source`` is named in the UserError if there is none."""
    if pipeline in _registered:
        return _registered[pipeline]
    if pipeline in BUILT_IN:
        module, name = BUILT_IN[pipeline]
        adapter = importlib.import_module(f"{__package__}.backbones.{module}")
        family: Family = getattr(adapter, name)()
        return family
    if pipeline in (installed := _installed()):
        return installed[pipeline]
    raise UserError(
        f"{source} is a {pipeline}, which is not supported. Supported pipelines: "
        f"{', '.join(known())}. {GUIDE}"
    )


def every() -> list[Family]:
    """One adapter of each known pipeline class, by name."""
    found = [of_pipeline(pipeline, pipeline) for pipeline in known()]
    return sorted(found, key=lambda family: family.card.name)


def _installed() -> dict[str, Family]:
    """The adapters that installed packages bring, by pipeline class."""
    found = [point.load()() for point in entry_points(group="stepdistill.families")]
    return {family.card.pipeline: family for family in found}
