"""Warm up a one-step student by regression on noise-image pairs.

stepdistill precompute digits --pairs 10000 --output pairs
accelerate launch trainers/regression.py --teacher digits --data pairs --output runs/warm-up
accelerate launch --multi_gpu -m stepdistill.trainers.regression --config run.yaml --output runs/a
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("regression"))
