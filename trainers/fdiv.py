"""Distil with f-distill (DMD2 under any f-divergence).

accelerate launch trainers/fdiv.py --teacher digits --output runs/fdiv
accelerate launch --multi_gpu -m stepdistill.trainers.fdiv --config run.yaml --output runs/fdiv
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("fdiv"))
