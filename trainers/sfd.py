"""Distil with SFD: as SiD, and forget classes or prompts at once.

accelerate launch trainers/sfd.py --teacher digits --method.forget 3 --output runs/sfd
accelerate launch --multi_gpu -m stepdistill.trainers.sfd --config run.yaml --output runs/sfd
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("sfd"))
