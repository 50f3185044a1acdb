"""NASA in joint attention, where image and text tokens attend to each other: SD 3 and 3.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from .heads import Steered, expanded, halves, in_heads, joined, through


class NegativeJointAttention(Steered):
    """A diffusers attention processor for the JointTransformerBlock of SD 3.

    With image tokens X, positive text P and negative text N, each a stream of its own:

        X:  softmax(Q_X [K_X, K_P]^T) [V_X, V_P]  -  a softmax(Q_X [K_X, K_N]^T) [0, V_N]
        P:  softmax(Q_P [K_X, K_P]^T) [V_X, V_P]
        N:  softmax(Q_N [K_X, K_N]^T) [V_X, V_N]

    so that X loses what it would have read from the negative prompt, SNOOPI's NASA
    (arXiv:2412.02687) restricted to image queries and text keys. a = 0 leaves X and P
    as they are without N; N = P leaves X its image part and 1 - a of its text part. Calls without
    text (the second attention of SD 3.5) or without ``negative_scale`` go to ``stock``.
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
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask)
        query = in_heads(hidden_states, attn.to_q, attn.norm_q, attn)
        key = in_heads(hidden_states, attn.to_k, attn.norm_k, attn)
        value = in_heads(hidden_states, attn.to_v, None, attn)
        text = encoder_hidden_states
        queries = halves(in_heads(text, attn.add_q_proj, attn.norm_added_q, attn), 2)
        keys = halves(in_heads(text, attn.add_k_proj, attn.norm_added_k, attn), 2)
        values = halves(in_heads(text, attn.add_v_proj, None, attn), 2)

        keys_of_positive, keys_of_negative = (torch.cat([key, k], dim=2) for k in keys)
        read = attend(
            torch.cat([query, queries[0]], dim=2),
            keys_of_positive,
            torch.cat([value, values[0]], dim=2),
        )
        pixels = query.shape[2]
        image, positive = read[:, :, :pixels], read[:, :, pixels:]
        only_text = torch.cat([torch.zeros_like(value), values[1]], dim=2)
        away = attend(query, keys_of_negative, only_text)
        image = through(attn, joined(image - expanded(negative_scale, query) * away))
        if attn.context_pre_only:  # the last block, which makes nothing of its text
            return image, encoder_hidden_states
        negative = attend(queries[1], keys_of_negative, torch.cat([value, values[1]], dim=2))
        return image, attn.to_add_out(joined(torch.cat([positive, negative], dim=2)))
