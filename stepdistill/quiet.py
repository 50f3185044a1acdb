"""Where a warning of diffusers is no news."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def truncation_asked_for(pipeline: Any, max_tokens: int | None) -> Iterator[None]:
    """Stable Diffusion 3's pipeline warns in every call of every word that it cuts off. With
    ``max_tokens`` that is what was asked for: its warnings are left out inside.
    """
    logger = logging.getLogger(type(pipeline).__module__)
    before = logger.level
    if max_tokens is not None:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
