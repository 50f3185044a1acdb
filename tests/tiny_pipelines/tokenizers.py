"""Tokenizers that read letter by letter, their vocabularies written out here."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, GemmaTokenizer, Qwen2Tokenizer, T5Tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TURNS = ("system", "user", "assistant")
PREAMBLE = (
    *("Describe", " the", " image", " by", " detailing", " color", " shape", " size", " texture"),
    *(" quantity", " text", " spatial", " relationships", " of", " objects", " and"),
    " background",
)


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: index for index, word in enumerate(words)}


def clip_tokenizer() -> CLIPTokenizer:
    """Every byte, inside a word and at its end: 514 ids, the last two begin and end a prompt."""
    letters = sorted(ByteLevel.alphabet())
    ends = [letter + "</w>" for letter in letters]
    vocabulary = _numbered([*letters, *ends, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocabulary, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Every printable letter of Latin script; others share the unknown id."""
    letters = [chr(code) for code in range(33, 0x180) if chr(code).isprintable()]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*special, *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> GemmaTokenizer:
    """Every byte, and the mark that stands for a space."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return GemmaTokenizer(vocab=_numbered([*special, *bytes_, "▁"]), model_max_length=2048)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Every byte, the marks of a turn of speech with their template, and Qwen-Image's preamble.

    Each word of the preamble is one token, because the pipeline drops the first 34 of a prompt.
    """
    words = [word.replace(" ", "Ġ") for word in (*TURNS, *PREAMBLE)]
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    letters = sorted(ByteLevel.alphabet())
    vocabulary = _numbered([*letters, *("".join(pair) for pair in merges), *QWEN_SPECIAL])
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=list(merges),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT,
        model_max_length=2048,
    )
