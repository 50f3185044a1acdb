"""Distil with VSD, as SwiftBrush does: no images, a LoRA critic.

accelerate launch trainers/vsd.py --teacher digits --output runs/vsd
accelerate launch --multi_gpu -m stepdistill.trainers.vsd --config run.yaml --output runs/vsd
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("vsd"))
