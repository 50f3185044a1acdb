r"""Distil with VSD, as SwiftBrush does: no images, a LoRA critic.

accelerate launch trainers/vsd.py --teacher digits --output runs/vsd
accelerate launch trainers/vsd.py --teacher path/to/sd --prompts prompts.txt --output runs/v2 \
    --max_steps 20000 --method.align_weight 0.1 --method.align_decay 20000   # SwiftBrush v2
accelerate launch --multi_gpu -m stepdistill.trainers.vsd --config run.yaml --output runs/vsd
"""

from __future__ import annotations

from stepdistill.cli import guarded
from stepdistill.distil import distil

if __name__ == "__main__":
    guarded(lambda: distil("vsd"))
