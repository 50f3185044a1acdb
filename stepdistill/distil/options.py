"""The options of every training program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import presets
from ..config import Settings, parse
from ..errors import UserError
from ..fit import FitConfig
from ..methods import METHODS, PathOptions
from ..methods.matching import Matching
from ..roles import LoRAOptions
from ..savings import MemoryOptions
from ..teachers import LoadOptions


@dataclass(frozen=True)
class DistilOptions:
    """Distil a teacher into a few-step student.

    Args:
        teacher: a built-in name (digits), a diffusers folder, a .safetensors file or a hub id
        output: the run folder; the student lies in its student folder
        data: "digits", a folder of images, by class in sub-folders, or one of stepdistill
            precompute; default: the built-in teacher's own (captioned where it is told by text), or
            none for a method that needs none
        prompts: of a teacher that is told by text: a .txt, .jsonl, .csv or .parquet file, or the
            name of a data set
        column: of the prompts; default: the first of prompt, caption, text
        split: of a data set that has several; default: train
        condition_dropout: how often the null conditioning is shown in place of a sample's own, so
            that the student can be guided
        steps: network calls a sample of the student
        init: a student's folder, or the folder of the run that made it: the generator starts from
            its weights instead of the teacher's; a LoRA needs a run of the same LoRA
        init_critic: the folder of a run: the critic starts from its newest checkpoint, and so does
            the head of a discriminator if that run has one
        times: the student's times instead, falling, in (0, 1]; default: evenly spaced from 1
        resume: go on from the newest checkpoint in output; false starts over in an empty folder
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        evaluate_samples: samples a measurement during training
        export_best: export the student of the checkpoint with the best best_metric, not the last
        export: what is written at the end: a whole pipeline "folder", a "lora", or "both"
        export_every: iterations between students written to students/NNNNNN; 0: at the end alone
        push_to_hub: put what was written there, owner/name; of "both" the LoRA as owner/name-lora
        validation_prompts: of the grids, for a teacher that is told by text alone; with precomputed
            samples its encoders are loaded for them, and released before training
        hooks: functions "module:name" to call after each iteration, see fit.Hook
        compile_blocks: torch.compile the blocks that repeat in the networks: the first iterations
            take minutes, the others less; needs a C++ compiler
        dry_run: print what the memory will hold, do one iteration of one micro-batch in
            output/dry_run, and export it
    """

    teacher: str
    output: str
    data: str = ""
    prompts: str = ""
    column: str | None = None
    split: str | None = None
    condition_dropout: float = 0.0
    init: str = ""
    init_critic: str = ""
    steps: int = 1
    times: tuple[float, ...] = ()
    resume: bool = True
    skip_corrupt: bool = False
    evaluate_samples: int = 2_000
    export: Literal["folder", "lora", "both"] = "folder"
    export_best: bool = False
    export_every: int = 0
    push_to_hub: str = ""
    validation_prompts: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    compile_blocks: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("evaluate_samples", 1), ("export_every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("column", "split"):
            if getattr(self, name) is not None and not self.prompts:
                raise UserError(f"{name} is of prompts: give --prompts, or leave --{name} out")


@dataclass(frozen=True)
class EvalOptions:
    """How students are measured during training, every evaluate_every iterations.

    The built-in worlds are measured in their own way unless one of these is given.

    Args:
        metrics: of stepdistill eval: fid, kid, precision_recall, density_coverage, inception_score,
            fd_dinov2, cmmd, patch_fid, and where prompts are known clip_score_vit_g_14,
            clip_score_torchmetrics, hpsv2, pickscore, aesthetic; default: fid and kid
        features: of fid, kid and the diversity: inception, digits, or another extractor;
            default: inception, or digits for 8x8 grey images
        weights: of extractors and scorers, as NAME=PATH; default: where stepdistill eval finds them
        reference: statistics that stepdistill eval reference made, or images, one for each
            extractor where it takes several; default: the teacher's own samples, drawn once, and
            the metrics are called teacher_distance, teacher_kid, teacher_precision ...
        prompts: of a teacher that is told by text, a file as of --prompts; default:
            validation_prompts, or what the training data tells
        batch_size: samples drawn at a time; default: those of a micro-batch, which fit
    """

    metrics: tuple[str, ...] = ()
    features: str | None = None
    weights: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    prompts: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"eval.batch_size must be at least 1, got {self.batch_size}")

    @property
    def given(self) -> bool:
        """Whether something else is asked for than what a built-in world measures."""
        return self != EvalOptions()


def read_settings(
    name: str,
    arguments: Sequence[str] | None,
    program: str = "",
    more: tuple[type[Any], ...] = (),
) -> Settings:
    """Options of ``train NAME``; the presets of a built-in teacher are their defaults.

    Another ``program`` takes the same, and the fields of ``more``.
    """
    program, flat = program or f"stepdistill train {name}", (*more, DistilOptions, FitConfig)
    kinds = (LoadOptions, METHODS[name].Config, LoRAOptions, MemoryOptions, EvalOptions)
    nested = dict(zip(("load", "method", "lora", "memory", "eval"), kinds, strict=True))
    if issubclass(METHODS[name], Matching):
        nested["path"] = PathOptions
    note = presets.described(name)
    defaults = getattr(METHODS[name], "defaults", {})
    settings = parse(program, flat, nested, arguments, defaults, note=note)
    options = settings.get(DistilOptions)
    preset = presets.of(options.teacher, name, len(options.times) or options.steps)
    if not preset:
        return settings
    return parse(program, flat, nested, arguments, {**defaults, **preset}, note=note)
