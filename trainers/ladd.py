"""Distil with LADD (adversarial terms alone, on the teacher's features).

accelerate launch trainers/ladd.py --teacher digits --output runs/ladd
accelerate launch --multi_gpu -m stepdistill.trainers.ladd --config run.yaml --output runs/ladd
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("ladd"))
