"""Records on disk: a file of its own, or one more line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import StepDistillError
from ...files import whole


def write_record(record: Mapping[str, Any], file: Path) -> None:
    """``record`` as JSON, indented. StepDistillError if it cannot be written."""
    with whole(file) as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n")


def add_record(record: Mapping[str, Any], file: Path) -> None:
    """``record`` as one more line of ``file``. StepDistillError if it cannot be written."""
    try:
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
    except OSError as error:
        raise StepDistillError(f"could not write {file} ({error})") from error
