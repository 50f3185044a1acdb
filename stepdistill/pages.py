"""Self-contained pages: rendered from the templates, pictures inside, written aside."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

from jinja2 import Environment, PackageLoader

from .errors import StepDistillError, UserError


def environment() -> Environment:
    """The templates of the package; what they are given is escaped."""
    return Environment(
        loader=PackageLoader("stepdistill"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def data_uri(data: bytes, kind: str) -> str:
    """``data`` of a media type such as image/png, as the source of an element."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def write_page(page: str, output: Path, what: str) -> Path:
    """Write ``page`` aside and rename it. StepDistillError, naming ``what``, if that fails.
    UserError for a path without a name."""
    if not output.name:
        raise UserError(f"could not write the {what}: {output} names no file")
    aside = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(page, encoding="utf-8")
        aside.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StepDistillError(f"could not write the {what} {output}: {error}") from error
    return output
