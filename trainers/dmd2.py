"""Distil with DMD2 (distribution matching, GAN, backward simulation).

accelerate launch trainers/dmd2.py --teacher digits --output runs/dmd2
accelerate launch --multi_gpu -m stepdistill.trainers.dmd2 --config run.yaml --output runs/dmd2
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("dmd2"))
