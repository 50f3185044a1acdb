"""Distil with SNOOPI's PG-SB: VSD under a random guidance scale for each sample.

accelerate launch trainers/snoopi.py --teacher digits --output runs/snoopi
accelerate launch --multi_gpu -m stepdistill.trainers.snoopi --config run.yaml --output runs/snoopi
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("snoopi"))
