"""Names that tell rows apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from .records import Record


def labels(groups: Sequence[Sequence[Record]]) -> list[tuple[str, str]]:
    """(label, name) of each: the model's name, and what of its folder and settings tells namesakes
    apart. The name leaves the steps out, for where they stand beside it.
    """
    firsts = [group[0] for group in groups]
    said = [record.name for record in firsts]
    names = said
    for tell in (_folder, _steps, _budget, _guidance, _dtype, _call, _size, _weights, _configs):
        told = [tell(record) for record in firsts]
        ways = {text: {t for s, t in zip(said, told, strict=True) if s == text} for text in said}
        added = [own if len(ways[text]) > 1 else "" for text, own in zip(said, told, strict=True)]
        said = list(map(str.__add__, said, added))
        if tell is not _steps:
            names = list(map(str.__add__, names, added))
    counted = Counter(said)
    numbers = [
        "" if counted[text] == 1 else f" ({said[:i].count(text) + 1})"
        for i, text in enumerate(said)
    ]
    both = zip(said, names, numbers, strict=True)
    return [(label + number, name + number) for label, name, number in both]


def _steps(record: Record) -> str:
    steps = record.steps
    return "" if steps is None else f", {steps} step{'s' if steps > 1 else ''}"


def _folder(record: Record) -> str:
    if record.cell:
        return f" of {record.cell['teacher']}"
    parent = Path(str(record.model.get("path") or "")).parent.name
    return f" of {parent}" if parent else ""


def _budget(record: Record) -> str:
    return f", {record.cell['budget']:,.0f} calls of training" if record.cell else ""


def _guidance(record: Record) -> str:
    scale = record.sampling.get("guidance_scale")
    return "" if scale is None else f", guidance {scale:g}"


def _dtype(record: Record) -> str:
    dtype = record.sampling.get("dtype")
    return "" if dtype is None else f", {dtype}"


def _call(record: Record) -> str:
    given = record.model.get("call") or {}
    return "".join(f", {name} {value}" for name, value in sorted(given.items()))


def _size(record: Record) -> str:
    size = record.sampling.get("image_size")
    return f", {size[0]}x{size[1]} pixels" if isinstance(size, list) else ""


def _configs(record: Record) -> str:
    """By the files that tell how it is sampled, the scheduler's among them."""
    hashes = sorted((record.model.get("config_sha256") or {}).items())
    return f", settings {sha256(repr(hashes).encode()).hexdigest()[:8]}" if hashes else ""


def _weights(record: Record) -> str:
    hashes = list((record.model.get("sha256") or {}).values())
    return f", weights {hashes[0][:8]}" if hashes else ""
