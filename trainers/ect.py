"""Distil with ECT (consistency tuning, no critic).

accelerate launch trainers/ect.py --teacher digits --output runs/ect
accelerate launch --multi_gpu -m stepdistill.trainers.ect --config run.yaml --output runs/ect
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("ect"))
