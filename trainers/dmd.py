"""Distil with DMD (distribution matching, and a regression on pairs).

stepdistill precompute digits --pairs 10000 --output pairs
accelerate launch trainers/dmd.py --teacher digits --data pairs --output runs/dmd
accelerate launch --multi_gpu -m stepdistill.trainers.dmd --config run.yaml --output runs/dmd
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("dmd"))
