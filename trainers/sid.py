"""Distil with SiD (score identity distillation).

accelerate launch trainers/sid.py --teacher digits --output runs/sid
accelerate launch --multi_gpu -m stepdistill.trainers.sid --config run.yaml --output runs/sid
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("sid"))
