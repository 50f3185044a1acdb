"""Which networks can be steered, and the swapping of their attention processors."""

from __future__ import annotations

from typing import Any

from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

from ..errors import UserError
from .cross import NegativeCrossAttention
from .flux import NegativeFluxAttention
from .heads import Steered
from .joint import NegativeJointAttention
from .marks import ReadsMarks

PROCESSORS: dict[type, Any] = {
    UNet2DConditionModel: NegativeCrossAttention,
    PixArtTransformer2DModel: NegativeCrossAttention,
    SD3Transformer2DModel: NegativeJointAttention,
    FluxTransformer2DModel: NegativeFluxAttention,
}
HANDLE = "negative_marks"  # where a network keeps the handle of its pre-hook


def steer(network: nn.Module) -> None:
    """Let ``network`` take a negative prompt: each call then says by ``negative_scale`` how much.

    Its weights, their names and its calls without ``negative_scale`` stay as they are; done twice
    it is done once. UserError for a network with another kind of attention.
    """
    kind = _processor_for(network)
    for layer in _attentions(network):
        if not isinstance(layer.processor, Steered):
            layer.set_processor(kind(layer.processor))
    if isinstance(network, PixArtTransformer2DModel) and not hasattr(network, HANDLE):
        handle = network.register_forward_pre_hook(ReadsMarks(), with_kwargs=True)
        setattr(network, HANDLE, handle)


def restore(network: nn.Module) -> None:
    """Give ``network`` back the processors it had before :func:`steer`."""
    for layer in _attentions(network):
        if isinstance(layer.processor, Steered):
            layer.set_processor(layer.processor.stock)
    if hasattr(network, HANDLE):
        getattr(network, HANDLE).remove()
        delattr(network, HANDLE)


def is_steered(network: nn.Module) -> bool:
    """Whether the attention of ``network`` knows ``negative_scale``."""
    return any(isinstance(layer.processor, Steered) for layer in _attentions(network))


def _attentions(network: nn.Module) -> Any:
    return (layer for layer in network.modules() if isinstance(layer, Attention | FluxAttention))


def _processor_for(network: nn.Module) -> Any:
    for known, kind in PROCESSORS.items():
        if isinstance(network, known):
            _check_layers(network)
            return kind
    raise UserError(
        f"{type(network).__name__} cannot take a negative prompt in its attention: of the networks "
        f"that can, diffusers has {', '.join(known.__name__ for known in PROCESSORS)}"
    )


def _check_layers(network: Any) -> None:
    """UserError for layers that mix the text in another way than :class:`Steered` do."""
    name = type(network).__name__
    if any(isinstance(layer.processor, nn.Module) for layer in _attentions(network)):
        raise UserError(
            f"this {name} has attention processors with weights of their own, such as an "
            "IP-Adapter's: unload them before steering it with a negative prompt"
        )
    if not isinstance(network, UNet2DConditionModel):
        return
    across = [layer for layer in _attentions(network) if layer.is_cross_attention]
    mixed = any(x.added_kv_proj_dim is not None or x.norm_cross is not None for x in across)
    if not across or mixed or network.config.addition_embed_type not in (None, "text_time"):
        raise UserError(
            f"this {name} does not read its prompt as those of Stable Diffusion and SDXL do, by "
            "cross-attention alone: it cannot be steered with a negative prompt"
        )
