"""NASA in cross-attention: U-Nets of Stable Diffusion 1.x, 2.x and XL, and PixArt."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from .heads import Steered, expanded, halves, in_heads, joined, through


class NegativeCrossAttention(Steered):
    """A diffusers attention processor: Z = softmax(Q K+^T) V+ - a softmax(Q K-^T) V-, then W_out.

    SNOOPI's NASA (arXiv:2412.02687); the bias of W_out is added once. Masks (B, 1, N)
    are split as the tokens are. Self-attention and calls without ``negative_scale`` go to
    ``stock``, the processor that was there before.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        negative_scale: Tensor | float | None = None,
    ) -> Any:
        """As diffusers calls a processor, with ``negative_scale`` a: a number, (B,), or None."""
        if negative_scale is None or encoder_hidden_states is None:
            return self.stock(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
            )
        query = in_heads(hidden_states, attn.to_q, attn.norm_q, attn)
        key = in_heads(encoder_hidden_states, attn.to_k, attn.norm_k, attn)
        value = in_heads(encoder_hidden_states, attn.to_v, None, attn)
        keys, values = halves(key, 2), halves(value, 2)
        masks = (None, None) if attention_mask is None else halves(attention_mask[:, None], -1)
        positive, negative = (
            attend(query, k, v, attn_mask=mask)
            for k, v, mask in zip(keys, values, masks, strict=True)
        )
        z = through(attn, joined(positive - expanded(negative_scale, query) * negative))
        if attn.residual_connection:
            z = z + hidden_states
        return z / attn.rescale_output_factor
