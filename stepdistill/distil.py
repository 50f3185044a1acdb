"""From options to a student: what every training program does around ``fit``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, presets
from .captioned_world import CAPTIONED, captioned_data, captioned_evaluation
from .conditioning import Conditioning
from .config import Settings, parse, write_yaml
from .data import Data, TensorData
from .data.digits import digits, digits_data
from .data.images import ImageFolder, load_image_folder
from .data.sharded_data import ShardedData
from .ema import EMA
from .encoding import read_told
from .errors import UserError
from .export import claim, export, export_lora
from .fit import FitConfig, FitResult, Hook, fit
from .grids import save_grid
from .initial import start_from
from .methods import METHODS
from .methods.base import Method
from .metrics.quality import measure
from .plans import StepPlan
from .precomputed import check_teacher, find_precomputed, stored
from .report import write_report
from .roles import LoRAOptions, Role, has_adapters, merged
from .runs import RunFolder
from .sampling import NoiseStreams, sample_student, sample_teacher
from .savings import MemoryOptions, save_memory
from .teachers import LoadOptions, Teacher, load_teacher, read_card

ENCODED_AT_ONCE = 16  # prompts in a call of the text encoders
MOST_COLUMNS, TEXT_COLUMNS = 10, 4  # of a grid, by class and by prompt


@dataclass(frozen=True)
class DistilOptions:
    """Distil a teacher into a few-step student.

    Args:
        teacher: a built-in name (digits), a diffusers folder or a hub id
        output: the run folder; the student lies in its student folder
        data: "digits", a folder of images, by class in sub-folders, or one of stepdistill
            precompute; default: the built-in teacher's own (captioned where it is told by text), or
            none for a method that needs none
        prompts: of a teacher that is told by text: a .txt, .jsonl, .csv or .parquet file, or the
            name of a data set
        steps: network calls a sample of the student
        init: a student's folder, or the folder of the run that made it: the generator starts from
            its weights instead of the teacher's
        times: the student's times instead, falling, in (0, 1]; default: evenly spaced from 1
        resume: go on from the newest checkpoint in output; false starts over in an empty folder
        skip_corrupt: leave unreadable images out (they are counted) instead of stopping
        evaluate_samples: samples a measurement during training, on built-in data
        export: what is written at the end: a whole pipeline "folder", a "lora", or "both"
        export_every: iterations between students written to students/NNNNNN; 0: at the end alone
        validation_prompts: of the grids, for a teacher that is told by text
        hooks: functions "module:name" to call after each iteration, see fit.Hook
        dry_run: do one iteration of one micro-batch in output/dry_run, and export it
    """

    teacher: str
    output: str
    data: str = ""
    prompts: str = ""
    init: str = ""
    steps: int = 1
    times: tuple[float, ...] = ()
    resume: bool = True
    skip_corrupt: bool = False
    evaluate_samples: int = 2_000
    export: Literal["folder", "lora", "both"] = "folder"
    export_every: int = 0
    validation_prompts: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("evaluate_samples", 1), ("export_every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")


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
    kinds = (LoadOptions, METHODS[name].Config, LoRAOptions, MemoryOptions)
    nested = dict(zip(("load", "method", "lora", "memory"), kinds, strict=True))
    note = presets.described(name)
    settings = parse(program, flat, nested, arguments, note=note)
    preset = presets.of(settings.get(DistilOptions).teacher, name)
    return parse(program, flat, nested, arguments, preset, note=note) if preset else settings


def distil(name: str, arguments: Sequence[str] | None = None) -> FitResult:
    """Train method ``name`` in its run folder, export the averaged generator, write the report."""
    settings = read_settings(name, arguments)
    if settings.get(DistilOptions).dry_run:
        settings = one_iteration(settings, METHODS[name].Config)
    options = settings.get(DistilOptions)
    with_tracker = importlib.util.find_spec("tensorboard") is not None
    accelerator = Accelerator(
        mixed_precision="no",
        log_with="tensorboard" if with_tracker else None,
        project_dir=options.output if with_tracker else None,
    )
    teacher = read_teacher(settings, accelerator.device)
    method = build_method(name, settings, teacher)
    if options.init:
        start_from(Path(options.init), method.roles["generator"], teacher)
    data = load_data(options, teacher)
    check_possible(name, method, data, teacher)
    check_export(options, settings.get(LoRAOptions), teacher)
    run = RunFolder(options.output)
    with run if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            _open(run, name, settings, data)
        result = _fit(name, method, data, run, settings, accelerator, teacher)
        if accelerator.is_main_process and not result.interrupted:
            with result.ema.applied():
                exported = _export(name, method, teacher, run, settings, result.iteration)
            print("\n".join(f"student: {folder}" for folder in exported))
            print(f"page:    {write_report(run.path)}")
    if result.interrupted and accelerator.is_main_process:
        print(
            f"stopped at iteration {result.iteration}, which is saved: the same command goes on",
            file=sys.stderr,
        )
    return result


def _export(
    name: str, method: Method, teacher: Teacher, run: RunFolder, settings: Settings, iteration: int
) -> list[Path]:
    """Write what ``export`` asks for, unless it is there; the folders."""
    wanted = settings.get(DistilOptions).export
    written = []
    for kind, folder, write in (
        ("folder", run.student, export_student),
        ("lora", run.lora, export_adapters),
    ):
        if wanted in (kind, "both"):
            if read_card(folder).get("iteration") != iteration:
                write(name, method, teacher, folder, iteration)
            written.append(folder)
    return written


def exports_on_the_way(
    name: str, teacher: Teacher, run: RunFolder, settings: Settings, accelerator: Accelerator
) -> list[Hook]:
    """The hook that writes ``students/NNNNNN``, if there is to be one."""
    every = settings.get(DistilOptions).export_every

    def write(iteration: int, method: Method, ema: EMA) -> None:
        if iteration % every == 0 and accelerator.is_main_process:
            with ema.applied():
                folder = run.path / "students" / f"{iteration:06d}"
                export_student(name, method, teacher, folder, iteration)

    return [write] if every else []


def own_hooks(options: DistilOptions) -> list[Hook]:
    """The functions that ``hooks`` names. UserError for one that is not there."""
    found: list[Hook] = []
    for hook in options.hooks:
        module, _, name = hook.partition(":")
        try:
            found.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"hooks names {hook}, write module:function: {error}") from error
    return found


def one_iteration(settings: Settings, method: type[Any]) -> Settings:
    """The same run, cut to one iteration of one micro-batch that updates every role."""
    options, config = settings.get(DistilOptions), settings.get(FitConfig)
    output = Path(options.output) / "dry_run"
    if (output / "config.yaml").exists():  # an earlier dry run
        shutil.rmtree(output)
    micro = config.batch_size // config.accumulate
    short: dict[str, Any] = {
        **{"max_steps": 1, "batch_size": micro, "accumulate": 1, "lr_warmup": 0, "lr_decay": 0},
        **{"log_every": 1, "save_every": 1, "sample_every": 1, "evaluate_every": 0},
    }
    own = settings.get(method)
    if hasattr(own, "critic_steps"):
        own = replace(own, critic_steps=1)
    parts = {
        **settings.parts,
        DistilOptions: replace(options, output=str(output), export_every=0),
        FitConfig: replace(config, **short),
        method: own,
    }
    return Settings(parts, {**settings.resolved, **short, "output": str(output)})


def export_checkpoint(run: Path, output: Path, iteration: int | None) -> Path:
    """Export the student of a checkpoint of ``run``: the given iteration, or the best measured one.

    UserError if the folder has no such checkpoint.
    """
    folder = RunFolder(run).checkpoints
    found = checkpoint.complete(folder)
    if not found:
        raise UserError(f"{run} holds no checkpoint")
    named = {int(path.name): path for path in found}
    if iteration is not None and iteration not in named:
        raise UserError(f"{run} has no checkpoint {iteration}: it has {sorted(named)}")
    path = named[iteration] if iteration is not None else checkpoint.best(folder) or found[-1]
    name = checkpoint.read_index(path)["settings"].get("method_name")
    if name not in METHODS:
        raise UserError(f"{run} is not a run of stepdistill train: its checkpoints name no method")
    settings = read_settings(name, ["--config", str(run / "config.yaml")])
    teacher = read_teacher(settings)
    method = build_method(name, settings, teacher)
    checkpoint.load_average(path, method.roles["generator"])
    export_student(name, method, teacher, output, int(path.name))
    return path


def read_teacher(settings: Settings, device: torch.device | str = "cpu") -> Teacher:
    """The teacher; on precomputed samples without what they stand in for, as grids allow."""
    options = settings.get(DistilOptions)
    found = find_precomputed(options.data)
    held = None
    if found is not None:
        held = stored(found, decodes=settings.get(FitConfig).sample_every > 0)
    return load_teacher(options.teacher, device, settings.get(LoadOptions), held)


def build_method(name: str, settings: Settings, teacher: Teacher) -> Method:
    """The method on this teacher; the same new weights (a GAN head's) on all ranks."""
    torch.manual_seed(settings.get(FitConfig).seed)
    options = settings.get(DistilOptions)
    if options.times and options.steps not in (1, len(options.times)):
        raise UserError(
            f"steps={options.steps}, but times has {len(options.times)}: leave steps out"
        )
    plan = StepPlan(options.times) if options.times else StepPlan.uniform(options.steps)
    kind = METHODS[name]
    method: Method = kind.from_teacher(
        teacher, plan, settings.get(kind.Config), settings.get(LoRAOptions)
    )
    save_memory(settings.get(MemoryOptions), method, teacher.denoiser)
    return method


def check_possible(name: str, method: Method, data: Data, teacher: Teacher) -> None:
    """UserError before any long work: data the method lacks, a plan the pipeline cannot follow."""
    if any(need.startswith("pairs") for need in METHODS[name].card.needs):
        if not (isinstance(data, ShardedData) and "z" in data.names):
            raise UserError(
                f"{name} learns from pairs of noise and sample: make some with stepdistill "
                "precompute --pairs, and give their folder as --data"
            )
    elif method.needs_data and isinstance(data, ShardedData) and "x0" not in data.names:
        raise UserError(
            f"{name} needs real samples, and {data.folder} holds conditionings alone: precompute "
            "images with --data"
        )
    elif method.needs_data and isinstance(data, TensorData) and data.x0 is None:
        needs = next(need for need in METHODS[name].card.needs if need.startswith("data"))
        raise UserError(f"{name} needs {needs}, and {teacher.name} brings none: give --data")
    teacher.check_plan(method.plan)


def check_export(options: DistilOptions, lora: LoRAOptions, teacher: Teacher) -> None:
    """UserError for a LoRA that there will not be, or that the stock pipeline cannot load."""
    if options.export == "folder":
        return
    if lora.rank == 0:
        raise UserError(f"export={options.export} needs LoRA roles: give --lora.rank")
    if not hasattr(teacher.pipeline, "save_lora_weights"):
        raise UserError(
            f"{teacher.family.card.pipeline} cannot load LoRA weights: use --export folder, which "
            "has them merged"
        )


def _open(run: RunFolder, name: str, settings: Settings, data: Data) -> None:
    """Write a new run's settings; UserError for an old run that is not to be gone on with."""
    claim(run.student)
    found = checkpoint.complete(run.checkpoints)
    if found and not settings.get(DistilOptions).resume:
        raise UserError(
            f"{run.path} holds {len(found)} checkpoints and resume is off: give another --output, "
            "or remove the folder"
        )
    if not found:
        write_yaml(settings.resolved, run.path / "config.yaml", f"stepdistill train {name}")
        if isinstance(data, ImageFolder):
            counts = {"data/images": len(data), "data/skipped": len(data.skipped)}
            run.log({"iteration": 0, **counts})
    if isinstance(data, ImageFolder | ShardedData):
        print(data.describe(), file=sys.stderr)


def load_data(options: DistilOptions, teacher: Teacher) -> Data:
    """Real samples if there are any, else conditionings alone.

    UserError for data that this teacher cannot make, or of classes it does not have.
    """
    shape, classes = teacher.sample_shape, teacher.num_classes
    source = options.data or (options.teacher if options.teacher == "digits" else "")
    if found := find_precomputed(source):
        if options.prompts:
            raise UserError(f"{source} brings its own prompts: leave --prompts out")
        check_teacher(found, teacher)
        return found
    if options.prompts:
        return encoded_prompts(options, teacher)
    if not source:
        if options.teacher in CAPTIONED:
            return captioned_data(teacher)
        if teacher.is_told_by_text:
            raise UserError(
                f"{options.teacher} is told by text: give --prompts, or precomputed samples as "
                "--data"
            )
        return TensorData(None, teacher.encode(range(classes or 1)))
    if teacher.is_told_by_text:
        raise UserError(
            f"{options.teacher} is told by text: give images with captions to stepdistill "
            f"precompute --data {source}, and its folder as --data here"
        )
    if shape != teacher.family.pixel_shape(teacher):
        raise UserError(
            f"{options.teacher} samples latents: give the images to stepdistill precompute --data "
            f"{source}, and its folder as --data here"
        )
    if source == "digits":
        wrong = "the digits are 8x8 grey images of 10 classes"
        if shape != (1, 8, 8):
            raise UserError(f"{wrong}, and {options.teacher} makes {shape}")
        if classes is None:
            return TensorData(digits()[0], Conditioning.empty(1797))
        if classes < 10:
            raise UserError(f"{wrong}, and {options.teacher} has {classes} classes")
        return digits_data()
    return load_image_folder(Path(source), shape, options.skip_corrupt).for_model(classes)


def encoded_prompts(options: DistilOptions, teacher: Teacher) -> Data:
    """The conditionings of all prompts, in memory."""
    prompts = list(read_told(teacher, options.prompts)[0])
    bar = tqdm(range(0, len(prompts), ENCODED_AT_ONCE), "encoding prompts", disable=None)
    parts = [teacher.encode(prompts[i : i + ENCODED_AT_ONCE]).to("cpu") for i in bar]
    return TensorData(None, Conditioning.cat(parts))


def export_student(
    name: str, method: Method, teacher: Teacher, folder: Path, iteration: int
) -> None:
    """Write the generator as it is now, as a diffusers folder."""
    card = {"method": name, "iteration": iteration}
    export(exportable(method.roles["generator"]), teacher, method.plan, folder, card)


def export_adapters(
    name: str, method: Method, teacher: Teacher, folder: Path, iteration: int
) -> None:
    """Write the adapters of the generator as they are now."""
    card = {"method": name, "iteration": iteration}
    export_lora(method.roles["generator"].frozen, teacher, method.plan, folder, card)


def exportable(role: Role) -> nn.Module:
    """The role's denoiser without adapters, in eval mode; the role itself stays as it is."""
    return merged(role).eval() if has_adapters(role) else role.frozen


def _fit(
    name: str,
    method: Method,
    data: Data,
    run: RunFolder,
    settings: Settings,
    accelerator: Accelerator,
    teacher: Teacher,
) -> FitResult:
    options = settings.get(DistilOptions)
    compared = ("teacher", "data", "prompts", "init", "steps", "times", "method", "lora")
    loaded = {k: v for k, v in settings.resolved["load"].items() if k != "encoders"}
    return fit(
        method,
        data,
        settings.get(FitConfig),
        run,
        settings={
            "method_name": name,
            "load": loaded,
            "teacher_fp8": settings.get(MemoryOptions).teacher_fp8,
            **{key: settings.resolved[key] for key in compared},
        },
        accelerator=accelerator,
        evaluate=evaluation(options, method, teacher),
        draw_samples=sample_grids(method, teacher, run.samples, options.validation_prompts),
        hooks=[*exports_on_the_way(name, teacher, run, settings, accelerator), *own_hooks(options)],
        resume=options.resume,
    )


def evaluation(
    options: DistilOptions, method: Method, teacher: Teacher
) -> Callable[[], Mapping[str, float]] | None:
    """How students of the built-in worlds are measured during training; None for others."""
    if options.teacher in CAPTIONED:
        return captioned_evaluation(method, teacher, options.evaluate_samples)
    if (options.data or options.teacher) == "digits":
        return digits_evaluation(method, teacher, options.evaluate_samples)
    return None


def digits_evaluation(
    method: Method, teacher: Teacher, num_samples: int
) -> Callable[[], Mapping[str, float]]:
    """Quality of the student as it is when called, on the digits."""

    def sampler(labels: Tensor, seeds: range) -> Tensor:
        cond = teacher.encode(labels.tolist())
        generator = method.roles["generator"].frozen
        return sample_student(
            generator, method.plan, cond, teacher.sample_shape, NoiseStreams(seeds)
        )

    def evaluate() -> Mapping[str, float]:
        quality = measure(sampler, num_samples)
        return {
            "fid": quality.fid,
            "class_accuracy": quality.class_accuracy,
            "diversity": quality.diversity,
            "num_samples": quality.num_samples,
        }

    return evaluate


def sample_grids(
    method: Method, teacher: Teacher, folder: Path, prompts: Sequence[str] = ()
) -> Callable[[int], None]:
    """Draws ``folder``/NNNNNN.png: two rows of the teacher above two of the student, same seeds.

    The columns are classes, or ``prompts``, by default some of the family's.
    """
    columns = min(teacher.num_classes or MOST_COLUMNS, MOST_COLUMNS)
    if teacher.is_told_by_text:
        columns = len(prompts) or TEXT_COLUMNS
    cond = teacher.encode(list(prompts)) if prompts else teacher.shown(columns)
    rows = [range(columns), range(columns, 2 * columns)]
    teacher_rows: list[Tensor] = []

    def draw(iteration: int) -> None:
        if not teacher_rows:
            noise = [NoiseStreams(seeds).normal(teacher.sample_shape) for seeds in rows]
            scale = getattr(method.config, "guidance_scale", 1.0)
            found = [sample_teacher(teacher, cond, z, guidance_scale=scale) for z in noise]
            teacher_rows.extend(picture(teacher, x0) for x0 in found)
        generator, shape = method.roles["generator"].frozen, teacher.sample_shape
        students = [
            picture(
                teacher, sample_student(generator, method.plan, cond, shape, NoiseStreams(seeds))
            )
            for seeds in rows
        ]
        save_grid([*teacher_rows, *students], folder / f"{iteration:06d}.png")

    return draw


def picture(teacher: Teacher, x0: Tensor) -> Tensor:
    """x0 -> images (B, C, H, W) in [-1, 1]; of a video its middle frame."""
    pixels = teacher.decode(x0)
    return pixels[:, :, pixels.shape[2] // 2] if pixels.ndim == 5 else pixels
