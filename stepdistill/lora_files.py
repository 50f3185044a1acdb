"""A LoRA student as files: diffusers' own format, and the keys that other programs read.

Adapters are written with their scale alpha / rank multiplied into B, so that rank and alpha agree
and no reader needs to know either:

    W x + (alpha / rank) B A x = W x + B' A x
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.utils import convert_state_dict_to_kohya
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import UserError

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for
KOHYA = "kohya_lora.safetensors"  # lora_unet_..., as web interfaces read Stable Diffusion's


def adapters(network: nn.Module) -> dict[str, Tensor]:
    """{layer.lora_A.weight, layer.lora_B.weight} of ``network``, with the scale inside B."""
    found: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            scale = layer.scaling["default"]
            found[f"{name}.lora_A.weight"] = layer.lora_A["default"].weight.detach().cpu()
            found[f"{name}.lora_B.weight"] = scale * layer.lora_B["default"].weight.detach().cpu()
    if not found:
        raise UserError(
            "this student has no LoRA adapters: train with --lora.rank, or export it whole"
        )
    return {name: weight.contiguous() for name, weight in found.items()}


def save_diffusers(pipeline: Any, component: str, network: nn.Module, path: Path) -> None:
    """``path`` in the format that ``pipeline.load_lora_weights`` reads."""
    layers = {f"{component}_lora_layers": adapters(network)}
    type(pipeline).save_lora_weights(path.parent, weight_name=path.name, **layers)


def save_kohya(network: nn.Module, path: Path) -> None:
    """``path`` with keys such as lora_unet_down_blocks_0_..._to_q.lora_down.weight, and alphas."""
    named = {f"unet.{name}": weight for name, weight in adapters(network).items()}
    converted = convert_state_dict_to_kohya(named)
    save_file({name: weight.contiguous() for name, weight in converted.items()}, path)
