"""The settings of the loop, the same for every method."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import Any

from .draws import check_seed
from .errors import UserError


@dataclass(frozen=True)
class FitConfig:
    """Settings of the loop, the same for every method. UserError for those that cannot run."""

    max_steps: int = 1000  # iterations
    batch_size: int = 128  # global: over all ranks and accumulated micro-batches
    accumulate: int = 1  # micro-batches a rank cuts its part of the batch into
    shards: int = 8  # cuts of the batch that draw on their own; ranks x accumulate divides it
    seed: int = 0  # of every draw and of new weights
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's decay of its two moments
    weight_decay: float = 0.01  # AdamW
    grad_clip: float = 10.0  # largest gradient norm of a role
    lr_warmup: int = 0  # iterations of linear rise at the start
    lr_decay: int = 0  # iterations of linear fall at the end
    lr_end: float = 0.0  # part of the learning rates that is left after the fall
    ema_half_life: float = 50_000  # images; the generator's average is evaluated and exported
    ema_rampup: float = 0.05  # the half-life is at most this part of the images seen
    bf16: bool = False  # autocast the networks; schedules and losses stay float32
    adam_8bit: bool = False  # AdamW's moments in 8 bits, which needs bitsandbytes
    workers: int = 0  # data loading processes
    log_every: int = 10  # iterations between lines of metrics.jsonl
    save_every: int = 500  # iterations between checkpoints
    keep: int = 2  # newest checkpoints kept, beside the best
    sample_every: int = 0  # iterations between grids of fixed seeds; 0: never
    evaluate_every: int = 0  # iterations between measurements; 0: never
    best_metric: str | None = None  # that the best checkpoint has; default: the first distance
    diversity_alarm: float = 0.5  # the diversity below which an alarm is told; 0: never
    stop_after: int = 0  # measurements in a row without a better one that end the run; 0: never
    stop_margin: float = 0.0  # the part of best_metric that counts as better

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_seed(self.seed)
        if self.adam_8bit and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "adam_8bit needs bitsandbytes, which is not installed: pip install bitsandbytes, "
                "or set adam_8bit=false"
            )
        if not self.grad_clip > 0:
            raise UserError(f"grad_clip must be above 0, got {self.grad_clip}")
        if not 0 <= self.lr_end <= 1:
            raise UserError(f"lr_end must lie in [0, 1], got {self.lr_end}")
        if not 0 <= self.stop_margin < 1:
            raise UserError(f"stop_margin must lie in [0, 1), got {self.stop_margin}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must lie in [0, 1), got {self.betas}")

    def lr_factor(self, iteration: int) -> float:
        """Multiplier of every learning rate at ``iteration`` (from 1)."""
        rise = min(1.0, iteration / self.lr_warmup) if self.lr_warmup else 1.0
        left = self.max_steps - iteration + 1
        fall = min(1.0, left / self.lr_decay) if self.lr_decay else 1.0
        return rise * (self.lr_end + (1 - self.lr_end) * fall)

    def due(self, what: str, iteration: int, ends: bool = False) -> bool:
        """Is it time to "log", "save", "sample" or "evaluate"? Every so often, and at the end."""
        every: int = getattr(self, f"{what}_every")
        return every > 0 and (ends or iteration == self.max_steps or iteration % every == 0)

    def trajectory(self) -> dict[str, Any]:
        """The settings that a resumed run must share: those that change the numbers."""
        free = _FREE | (set() if self.lr_decay else {"max_steps"})
        if self.best_metric is None:  # as in checkpoints of before there was such an option
            free |= {"best_metric"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


_LEAST = {
    **dict.fromkeys(("max_steps", "batch_size", "accumulate", "shards"), 1),
    **dict.fromkeys(("log_every", "save_every", "keep"), 1),
    **dict.fromkeys(("lr_warmup", "lr_decay", "weight_decay", "ema_half_life"), 0),
    **dict.fromkeys(("ema_rampup", "workers", "sample_every", "evaluate_every"), 0),
    **dict.fromkeys(("diversity_alarm", "stop_after"), 0),
}
_FREE = {"accumulate", "workers", "log_every", "save_every", "keep", "sample_every"}
_FREE |= {"evaluate_every", "diversity_alarm", "stop_after", "stop_margin"}
