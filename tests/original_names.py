"""Stable Diffusion's pipelines in one file, under the names of their authors' code.

The inverse of what diffusers converts, for networks of one attention a layer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file
from torch import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, CLIP_XL = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
OPEN_CLIP = "conditioner.embedders.1.model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_original(pipeline: Any, file: Path) -> Path:
    """``pipeline``'s networks in ``file``: Stable Diffusion 1 or XL."""
    tensors = {UNET + k: v for k, v in unet(pipeline.unet).items()}
    tensors |= {VAE + k: v for k, v in vae(pipeline.vae).items()}
    two = getattr(pipeline, "text_encoder_2", None)
    prefix = CLIP if two is None else CLIP_XL
    tensors |= {prefix + k: v for k, v in clip(pipeline.text_encoder).items()}
    if two is not None:
        tensors |= {OPEN_CLIP + k: v for k, v in open_clip(two).items()}
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, file)
    return file


def unet(network: Any) -> dict[str, Tensor]:
    """A UNet2DConditionModel's weights as ldm's UNetModel names them."""
    tables = DIFFUSERS_TO_LDM_MAPPING["unet"]
    single = {**tables["layers"], **tables["addition_embed_type"]}
    each = network.config.layers_per_block + 1
    weights = network.state_dict()

    def named(key: str) -> str:
        if key in single:
            return single[key]
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
            part, i, rest = found[1], int(found[2]), found[3]
            return f"middle_block.{2 * i if part == 'resnets' else 1}.{within(part, rest)}"
        found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key)
        assert found is not None, key
        way, block, part, i, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if part == "downsamplers":
            return f"input_blocks.{each * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            attends = any(k.startswith(f"up_blocks.{block}.attentions") for k in weights)
            return f"output_blocks.{each * block + each - 1}.{1 + attends}.{rest}"
        place = (
            f"input_blocks.{1 + each * block + i}"
            if way == "down"
            else f"output_blocks.{each * block + i}"
        )
        return f"{place}.{'0' if part == 'resnets' else '1'}.{within(part, rest)}"

    return {named(key): value for key, value in weights.items()}


def within(part: str, rest: str) -> str:
    """A resnet's layers by their numbers; an attention's are named alike."""
    layer, _, last = rest.rpartition(".")
    return f"{RESNET[layer]}.{last}" if part == "resnets" else rest


def vae(network: Any) -> dict[str, Tensor]:
    """An AutoencoderKL's weights as ldm's names them; attention is by convolutions there."""
    blocks, found = len(network.config.block_out_channels), {}
    for key, value in network.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{blocks - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            name,
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            head, rest = name.split("mid_block.attentions.0.")
            layer, _, last = rest.rpartition(".")
            name = f"{head}mid.attn_1.{VAE_ATTENTION[layer]}.{last}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def clip(encoder: Any) -> dict[str, Tensor]:
    """A CLIPTextModel's weights as older transformers name them."""
    return {
        f"text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()
    }


def open_clip(encoder: Any) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection's weights as open_clip names them."""
    table = {v: k for k, v in DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].items()}
    own = dict(encoder.state_dict())
    found = {name: own.pop(key) for name, key in table.items()}
    found["text_projection"] = found["text_projection"].T
    for i in range(encoder.config.num_hidden_layers):
        old, new = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = [own.pop(f"{old}self_attn.{name}_proj.{kind}") for name in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
            for key, name in OPEN_CLIP_LAYER.items():
                found[f"{new}{name}.{kind}"] = own.pop(f"{old}{key}.{kind}")
    assert not own, own.keys()
    return found
