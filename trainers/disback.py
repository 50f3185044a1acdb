"""Distil with DisBack (DMD2 along the teacher's own way back from the untrained student).

accelerate launch trainers/disback.py --teacher digits --output runs/disback
accelerate launch --multi_gpu -m stepdistill.trainers.disback --config run.yaml --output runs/a
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("disback"))
