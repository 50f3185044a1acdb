"""The record of the families' proofs, from what their tests measured.

``make families`` runs the tests with --reached FILE, and then this.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepdistill import families
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError

PROOFS = ("teacher", "student", "lora", "bf16")


@dataclass(frozen=True)
class Options:
    """Record how closely the families' proofs hold.

    Args:
        reached: the lines that the tests wrote
        output: the JSON file to write
    """

    reached: str
    output: str


def main(arguments: Sequence[str] | None = None) -> None:
    """The largest difference of each family and proof, beside what the family is."""
    program = "stepdistill.evals.family_record"
    options = parse(program, (Options,), {}, arguments).get(Options)
    worst: dict[str, dict[str, float]] = {}
    for line in Path(options.reached).read_text().splitlines():
        found = json.loads(line)
        own = worst.setdefault(found["family"], {})
        own[found["proof"]] = max(own.get(found["proof"], 0.0), found["value"])
    cards: list[dict[str, Any]] = [family.card.record() for family in families.every()]
    if missing := [card["name"] for card in cards if card["name"] not in worst]:
        raise UserError(f"{options.reached} has no proof of {', '.join(missing)}")
    record = {
        "proofs": PROOFS,
        "families": [{**card, "reached": worst[card["name"]]} for card in cards],
        "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "peft")}
        | {"torch": torch.__version__},
    }
    Path(options.output).write_text(json.dumps(record, indent=1) + "\n")
    print(options.output)


if __name__ == "__main__":
    guarded(main)
