"""Export the student of a checkpoint as a diffusers folder.

stepdistill export runs/dmd2 --output student            # the best measured checkpoint
stepdistill export runs/dmd2 --output student --checkpoint 1500
stepdistill export runs/dmd2 --output student --push_to_hub me/my-student
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.distil import export_checkpoint
from stepdistill.sharing import push_to_hub


@dataclass(frozen=True)
class Options:
    """Export a checkpoint's student as a diffusers folder, and check it.

    Args:
        run: the run folder
        output: the folder to write; default: RUN/student
        checkpoint: its iteration; default: the best measured one, or the newest
        push_to_hub: also upload it to this repository, owner/name
        private: make a new repository private
    """

    run: str
    output: str = ""
    checkpoint: int | None = None
    push_to_hub: str = ""
    private: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Export and say from which checkpoint."""
    options = parse("stepdistill export", (Options,), {}, arguments, positional=True).get(Options)
    output = Path(options.output) if options.output else Path(options.run) / "student"
    source = export_checkpoint(Path(options.run), output, options.checkpoint)
    print(f"{output} (from {source})")
    if options.push_to_hub:
        print(push_to_hub(output, options.push_to_hub, options.private))


if __name__ == "__main__":
    guarded(main)
