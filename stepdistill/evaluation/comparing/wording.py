"""Words put together."""

from __future__ import annotations

from collections.abc import Sequence


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def device_words(device: str) -> str:
    """A record's device: "cpu, 1 threads" is cpu with 1 thread."""
    name, _, threads = device.partition(", ")
    count = threads.removesuffix(" threads")
    if not count.isdecimal():
        return device
    return f"{name} with {count} thread{'s' if count != '1' else ''}"
