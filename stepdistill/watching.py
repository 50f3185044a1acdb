"""What measurements decide during training: the best checkpoint, an alarm, an end.

They are read from metrics.jsonl, which a resumed run has rewound to its checkpoint, so a run that
was killed decides as one that was not; and on all ranks they are the main process's, so all decide
alike.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from .errors import NonFiniteError, UserError
from .fit_config import FitConfig
from .metrics.metric_names import HIGHER, LOWER, named, of_teacher
from .progress import Progress
from .runs import RunFolder, read_metrics

Metrics = Mapping[str, float]
MEASURED = "eval/"  # how metrics.jsonl marks what was measured
SECONDS, ALARM = "seconds", "diversity_alarm"  # beside it: how long it took, and 1 at an alarm
STOPPED = "stopped"  # of a line of its own: why the run has ended before its last iteration
# the first that is measured decides unless told otherwise
DISTANCES = tuple(
    own
    for name in ("fid", "fd_dinov2", "cmmd", "kid", "patch_fid")
    for own in (name, of_teacher(name))
)


class Watch:
    """Measures the generator as it is when asked, on every rank, and says what follows from it."""

    def __init__(
        self,
        evaluate: Callable[[], Metrics] | None,
        config: FitConfig,
        accelerator: Accelerator,
        run: RunFolder,
    ) -> None:
        self.evaluate, self.config = evaluate, config
        self.accelerator, self.run = accelerator, run
        found = measurements(read_metrics(run.metrics)) if accelerator.is_main_process else []
        self.history: list[Metrics] = shared(accelerator, found)

    def due(self, iteration: int) -> bool:
        """Is there to be a measurement?"""
        return self.evaluate is not None and self.config.due("evaluate", iteration)

    def measure(self, iteration: int, progress: Progress) -> tuple[Metrics, float | None]:
        """What the main process measured, told; and its :func:`score`, None if it has none.

        UserError if ``best_metric`` is not in it, NonFiniteError for a NaN that would have to
        decide when to stop.
        """
        assert self.evaluate is not None
        began = time.perf_counter()
        metrics: Metrics = shared(self.accelerator, dict(self.evaluate()))
        seconds = time.perf_counter() - began
        check_metrics(self.config, metrics)
        value = score(metrics, self.config.best_metric)
        if self.config.stop_after and not (value is not None and math.isfinite(value)):
            raise NonFiniteError(
                f"the measurement at iteration {iteration} is NaN or Inf ({dict(metrics)}), and "
                "stop_after goes by it: mend what measures, and run the same command to go on"
            )
        self.history.append(metrics)
        told = {**metrics, SECONDS: seconds}
        if crossed([row.get("diversity") for row in self.history], self.config.diversity_alarm):
            told[ALARM] = 1
            if self.accelerator.is_main_process:
                tqdm.write(alarm(iteration, metrics["diversity"], self.config), file=sys.stderr)
        progress.evaluation(iteration, told)
        return metrics, value

    def stopped(self, iteration: int) -> str:
        """Why the run ends at ``iteration``, in a sentence; "" if it goes on."""
        config = self.config
        scores = [score(row, config.best_metric) for row in self.history]
        if not config.stop_after or iteration >= config.max_steps:
            return ""
        if stalled([s for s in scores if s is not None], config.stop_margin) < config.stop_after:
            return ""
        name = str(chosen(self.history[-1], config.best_metric))
        margin = f" by more than {config.stop_margin:.3g} of it" if config.stop_margin else ""
        return (
            f"stopped at iteration {iteration:,} of {config.max_steps:,}: {config.stop_after} "
            f"measurements in a row did not {improve(name)}{margin}"
        )

    def end(self, iteration: int) -> str:
        """:meth:`stopped`, written into metrics.jsonl."""
        why = self.stopped(iteration)
        if why and self.accelerator.is_main_process:
            self.run.log({"iteration": iteration, STOPPED: why})
            tqdm.write(why, file=sys.stderr)
        return why


def check_watched(config: FitConfig, measures: bool) -> None:
    """UserError for measurements without anything that ``measures``, or settings without them."""
    if config.evaluate_every and not measures:
        raise UserError(
            f"evaluate_every={config.evaluate_every} has nothing to measure: set it to 0, or give "
            "fit a function as evaluate"
        )
    for name in ("stop_after", "best_metric"):
        if getattr(config, name) and not config.evaluate_every:
            raise UserError(f"{name} goes by measurements: give evaluate_every too")


def check_metrics(config: FitConfig, names: Collection[str]) -> None:
    """UserError if ``names`` are measured, and the one that is to decide is not among them."""
    listed = ", ".join(names)
    if config.best_metric is not None and config.best_metric not in names:
        raise UserError(f"best_metric={config.best_metric} is not measured: there is {listed}")
    if config.best_metric is not None and named(config.best_metric).goal is None:
        known = ", ".join(name for name in names if named(name).goal is not None)
        raise UserError(
            f"best_metric={config.best_metric} cannot decide, as it is not known which way it gets "
            f"better: set it to {known or 'a metric whose direction is known, such as fid'}"
        )
    if config.stop_after and chosen(names, config.best_metric) is None:
        raise UserError(f"stop_after needs a metric to go by: set best_metric, to one of {listed}")


def chosen(names: Collection[str], best_metric: str | None) -> str | None:
    """The metric that decides: ``best_metric``, by default the first distance; None without one."""
    if best_metric is not None:
        return best_metric
    return next((name for name in DISTANCES if name in names), None)


def score(metrics: Metrics, best_metric: str | None) -> float | None:
    """How far the metric that decides is from the best there is: the lower, the better."""
    name = chosen(metrics, best_metric)
    value = None if name is None else metrics.get(name)
    return None if value is None or name is None else named(name).shortfall(value)


def improve(name: str) -> str:
    """What a better student would do to the metric, in words."""
    words = {LOWER: f"lower {name}", HIGHER: f"raise {name}"}
    goal = named(name).goal
    assert goal is not None
    return words.get(goal, f"bring {name} nearer to {goal:g}")


def stalled(scores: Sequence[float], margin: float) -> int:
    """How many of the last ``scores`` in a row did not improve.

    One improves that lies below the last improvement s by more than margin |s|; so slow progress
    adds up until it counts.
    """
    best, since = math.inf, 0
    for value in scores:
        better = value < (best - margin * abs(best) if math.isfinite(best) else best)
        best, since = (value, 0) if better else (best, since + 1)
    return since


def crossed(values: Sequence[float | None], threshold: float) -> bool:
    """Whether the last of ``values`` is below ``threshold`` and the one before was not."""
    below = [value is not None and value < threshold for value in values]
    return below[-1] and not any(below[-2:-1])


def alarm(iteration: int, diversity: float, config: FitConfig) -> str:
    """What a fall of the diversity means, and what usually helps."""
    return (
        f"iteration {iteration}: diversity is {diversity:.3g}, below "
        f"diversity_alarm={config.diversity_alarm:g} (1 is as diverse as the teacher, or as real "
        "images where those are the measure): samples that are told the same look alike. What "
        "usually helps is less method.guidance_scale, more method.gan_weight, more "
        "method.critic_steps, or a lower learning rate of the generator; training goes on"
    )


def measurements(lines: Sequence[Mapping[str, Any]]) -> list[Metrics]:
    """What the lines of metrics.jsonl tell of measurements, oldest first."""
    cut = len(MEASURED)
    rows = [{k[cut:]: v for k, v in line.items() if k.startswith(MEASURED)} for line in lines]
    return [row for row in rows if row]


def remarks(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the lines of metrics.jsonl tell of alarms, and of an early end, in sentences."""
    fell = [line for line in lines if line.get(MEASURED + ALARM)]
    said = [
        f"Diversity alarm at iteration {line['iteration']:,}: {line[MEASURED + 'diversity']:.3g} "
        "(1 is as diverse as what it is compared with)."
        for line in fell
    ]
    last = max((line["iteration"] for line in lines), default=0)
    why = [line[STOPPED] for line in lines if STOPPED in line and line["iteration"] == last]
    return said + [f"{text[:1].upper()}{text[1:]}." for text in why]


def shared(accelerator: Accelerator, value: Any) -> Any:
    """The main process's ``value``, on all."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value
