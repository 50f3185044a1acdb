"""NASA in Flux, whose later blocks hold text and image tokens in one stream."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from ..errors import UserError
from .heads import Steered, expanded, in_heads, joined, through


class NegativeFluxAttention(Steered):
    """A diffusers attention processor for both kinds of Flux' blocks.

    Positive tokens P, negative tokens N and image tokens X stand behind each other in this order,
    P and N at the same positions, and are mixed as in
    :class:`~stepdistill.negative_attention.NegativeJointAttention`:

        X:  softmax(Q_X [K_P, K_X]^T) [V_P, V_X]  -  a softmax(Q_X [K_N, K_X]^T) [V_N, 0]
        P:  softmax(Q_P [K_P, K_X]^T) [V_P, V_X]
        N:  softmax(Q_N [K_N, K_X]^T) [V_N, V_X]

    Calls without ``negative_scale`` go to ``stock``.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        negative_scale: Tensor | float | None = None,
        negative_tokens: int | None = None,
    ) -> Any:
        """As diffusers calls a processor, with ``negative_scale`` a: a number, (B,), or None.

        ``negative_tokens`` is how many tokens N has, and P: UserError for a call that does not say.
        """
        text = encoder_hidden_states
        if negative_scale is None:
            return self.stock(attn, hidden_states, text, attention_mask, image_rotary_emb)
        if negative_tokens is None:
            raise UserError(
                "a call of Flux with negative_scale needs negative_tokens, the tokens of a prompt, "
                "too: build it with negative_call or with_negative"
            )
        query = in_heads(hidden_states, attn.to_q, attn.norm_q, attn)
        key = in_heads(hidden_states, attn.to_k, attn.norm_k, attn)
        value = in_heads(hidden_states, attn.to_v, None, attn)
        if text is not None:
            query = _behind(in_heads(text, attn.add_q_proj, attn.norm_added_q, attn), query)
            key = _behind(in_heads(text, attn.add_k_proj, attn.norm_added_k, attn), key)
            value = _behind(in_heads(text, attn.add_v_proj, None, attn), value)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=2)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=2)

        n = negative_tokens
        (q_p, q_n, q_x), (k_p, k_n, k_x), (v_p, v_n, v_x) = (
            heads.tensor_split((n, 2 * n), dim=2) for heads in (query, key, value)
        )
        read = attend(_behind(q_p, q_x), _behind(k_p, k_x), _behind(v_p, v_x))
        positive, image = read[:, :, :n], read[:, :, n:]
        away = attend(q_x, _behind(k_n, k_x), _behind(v_n, torch.zeros_like(v_x)))
        image = image - expanded(negative_scale, query) * away
        negative = attend(q_n, _behind(k_n, k_x), _behind(v_n, v_x))

        found = joined(torch.cat([positive, negative, image], dim=2))
        if text is None:  # one stream, whose block projects by itself
            return found
        return through(attn, found[:, 2 * n :]), attn.to_add_out(found[:, : 2 * n])


def _behind(text: Tensor, image: Tensor) -> Tensor:
    """Both as one sequence, the image last."""
    return torch.cat([text, image], dim=2)
