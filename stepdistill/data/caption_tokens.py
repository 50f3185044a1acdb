"""The tokenizer of the captioned digits: a CLIPTokenizer whose vocabulary is our words.

A word is an added token, so it is matched whole; the byte-pair model beneath knows no letters, so
each letter of any other word is the unknown token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from .captioned_digits import Caption
from .captions import MAX_WORDS, vocabulary
from .loading import TensorData

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
MAX_TOKENS = MAX_WORDS + 2


def caption_tokenizer() -> Any:
    """A transformers CLIPTokenizer of 46 tokens and a model_max_length of 16, padded with END.

    END has the number 1: CLIP's text model takes its pooled state at the first token of that
    number, but at the highest number of all if END were 2.
    """
    from tokenizers import AddedToken
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer(
        vocab={START: 0, END: 1, UNKNOWN: 2},
        merges=[],
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
    )
    words = [AddedToken(word, single_word=True, normalized=True) for word in vocabulary()]
    tokenizer.add_tokens(words)
    return tokenizer


def tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(B, 16) token numbers, padded and cut to that length as diffusers' pipelines do."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    numbers: Tensor = encoded.input_ids
    return numbers


def caption_data(captions: Sequence[Caption]) -> TensorData:
    """Captions without pictures: their ``input_ids`` (N, 16), and what is ``said`` (N, 7)."""
    said = torch.stack([caption.said.labels for caption in captions])
    input_ids = tokens(caption_tokenizer(), [caption.text for caption in captions])
    return TensorData(None, Conditioning({"input_ids": input_ids, "said": said}))
