"""Several runs in turn, each from the student of the one before.

stepdistill recipes sd15-1step-stages > stages.yaml
accelerate launch trainers/stages.py --config stages.yaml --data CACHE --output runs/sd15
accelerate launch --multi_gpu -m stepdistill.trainers.stages --config stages.yaml --output runs/a
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import run_stages

if __name__ == "__main__":
    guarded(run_stages)
