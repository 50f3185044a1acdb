"""Measure a model by a published protocol: one command, one record.

    stepdistill eval runs/dmd2/student --protocol digits --output digits.json
    stepdistill eval runs/sd/student --protocol coco2014-30k --reference val2014/ \
        --prompts captions_coco14_test.txt --weights inception=inception-2015-12-05.pt \
        --output coco.json
    accelerate launch --num_processes 8 -m stepdistill.evals.evaluate_model runs/sd/student ...

Samples are told by image seed, so batch size and number of processes do not change them. The same
command again goes on where a killed one was. ``stepdistill eval images``, ``reference`` and
``compare`` are the other three commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.draws import check_seed
from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.measures.weights import weighed, weights_of
from stepdistill.evaluation.models.subject import SHAPE, load_subject
from stepdistill.evaluation.options import check_least, device_of, names_of, writable
from stepdistill.evaluation.protocols import PROTOCOLS, Protocol, custom, find_protocol
from stepdistill.evaluation.reading.measuring import Measured
from stepdistill.evaluation.records.record import describe, record_of, settings_of
from stepdistill.evaluation.records.written import write_record
from stepdistill.evaluation.running.choices import BATCH, Asked
from stepdistill.evaluation.running.engine import Engine
from stepdistill.evaluation.running.evaluation import Evaluation
from stepdistill.evaluation.running.kept import folder_for_features, keep_features
from stepdistill.evaluation.running.together import Together
from stepdistill.teachers import DTYPES


@dataclass(frozen=True)
class Options:
    """Measure a model by a protocol.

    Args:
        student: a built-in name, a diffusers folder, or a hub id
        protocol: (needed) what is sampled and compared, see below
        output: (needed) the file of the record; samples go beside it into NAME.samples, and the
            features so far into NAME.parts, which is removed at the end (Inception: 8 kB a sample)
        num: samples; default: the protocol's
        seed: of the first sample; sample i has seed + i
        steps: default: a student's trained number, its family's or pipeline's own of another model
        guidance_scale: default: the pipeline's own, none for a student
        anyway: use guidance_scale on a student too, which is trained to do without
        repeats: of all samples, with the seeds that follow; 3 for EDM's minimum of three
        batch_size: samples a call of the model; does not change what they are
        metrics: one or more, see below; default: the protocol's
        prompts: a file of prompts, or a data set; default: the protocol's
        reference: images (a folder, .zip, .tar or .npz) or statistics, several with spaces between;
            default: the protocol's
        skip_corrupt: leave unreadable images of the reference out (they are counted) instead of
            stopping
        weights: of extractors and scorers, as NAME=PATH, several with spaces between, see below;
            default: what the environment names, or the hub has
        features: of the custom protocol: the extractor that distances are measured on; default:
            inception
        size: of the custom protocol: pixels that images are cut and resized to first; default: as
            they are
        height: of a sample, in pixels, where its pipeline takes one; default: the pipeline's own
        width: the same; default: the pipeline's own
        frames: of a video, whose middle one is measured; default: the pipeline's own
        dtype: of the model's weights: float32, bfloat16 or float16
        images: a folder that all images are written to, as PNG
        keep_features: a folder that the features are written to
        bootstrap: replicates for the standard error of a Frechet distance; default: the protocol's
        device: default: what accelerate chooses
    """

    student: str
    protocol: str | None = None
    output: str | None = None
    num: int | None = None
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    anyway: bool = False
    repeats: int = 1
    batch_size: int = BATCH
    metrics: tuple[str, ...] = ()
    prompts: str | None = None
    reference: tuple[str, ...] = ()
    skip_corrupt: bool = False
    weights: tuple[str, ...] = ()
    features: str | None = None
    size: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    dtype: str = "float32"
    images: str | None = None
    keep_features: str | None = None
    bootstrap: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.protocol is None:
            raise UserError(f"eval needs --protocol, one of {', '.join(PROTOCOLS)}")
        if self.output is None:
            raise UserError("eval needs --output, the file of the record")
        least = {"num": 2, "repeats": 1, "batch_size": 1, "size": 1, "bootstrap": 0, "steps": 1}
        least |= {"height": 1, "width": 1, "frames": 1}
        check_least(self, least)
        if self.bootstrap == 1:
            raise UserError("bootstrap must be 0, or at least 2 replicates, got 1")
        check_seed(self.seed)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.protocol != "custom" and (self.features or self.size):
            raise UserError(f"features and size are of custom: {self.protocol} has its own")


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, measure, write the record and print it."""
    options = parse("stepdistill eval", (Options,), {}, arguments, positional=True, note=note())
    run(options.get(Options))


def note() -> str:
    """The names of protocols, metrics and weights, as they end --help."""
    made = {name: make() for name, make in PROTOCOLS.items()}
    listed = [f"  {name:26} {protocol.about}" for name, protocol in made.items()]
    metrics = dict.fromkeys(name for protocol in made.values() for name in protocol.measures)
    weights = dict.fromkeys(weighed().values())
    return "\n".join(
        [
            "protocols:",
            *listed,
            f"metrics, as a protocol has them: {', '.join(metrics)}",
            f"weights: {', '.join(weights)}",
            "without a model: stepdistill eval images, eval reference and eval compare",
        ]
    )


def run(options: Options) -> None:
    """UserError before the long work for whatever is wrong."""
    state = PartialState(cpu=options.device == "cpu" or not torch.accelerator.is_available())
    together = Together(state)
    evaluation = together.do(lambda: prepared(options, state))
    settings = settings_of(evaluation) if state.is_main_process else {}
    with ExitStack() as held:

        def begin() -> None:
            if state.is_main_process:
                held.enter_context(evaluation.work.held(settings))
                evaluation.begin()

        together.do(begin)
        references = together.do(lambda: part_of(evaluation, state))
        if not state.is_main_process:
            return
        if evaluation.work.stop.exists():
            print(f"stopped; the same command goes on from {evaluation.work.path}")
            return
        check_whole(evaluation)
        evaluation.check_images()
        record = record_of(evaluation, references, settings, state.num_processes)
        if options.keep_features is not None:
            keep_features(evaluation, Path(options.keep_features))
        write_record(record, evaluation.asked.output)
        evaluation.work.remove()
    print(describe(record))
    print(evaluation.asked.output)


def prepared(options: Options, state: PartialState) -> Evaluation:
    """The model loaded and the evaluation checked. UserError for whatever is wrong."""
    protocol, asked = protocol_of(options), asked_of(options)
    for name, folder in (("images", options.images), ("keep_features", options.keep_features)):
        if folder is not None and Path(folder).resolve().is_relative_to(asked.parts.resolve()):
            raise UserError(
                f"{folder} goes at the end, with {asked.parts}: give another folder as --{name}"
            )
    if state.is_main_process:  # which alone writes there, and tries it with a file
        check_output(asked.output)
        if options.keep_features is not None:
            folder_for_features(Path(options.keep_features))
    named = options.device
    device = state.device if named is None else torch.device(device_of(named))
    subject = load_subject(
        options.student,
        options.steps,
        options.guidance_scale,
        options.anyway,
        options.dtype,
        device,
        shape_of(options),
    )
    return Evaluation.of(subject, protocol, asked, device)


def shape_of(options: Options) -> dict[str, int]:
    """What was asked for of a sample's shape, as arguments of a pipeline's call."""
    asked = {name: getattr(options, option) for name, option in SHAPE.items()}
    return {name: value for name, value in asked.items() if value is not None}


@torch.no_grad()
def part_of(evaluation: Evaluation, state: PartialState) -> dict[str, Measured]:
    """This process's samples; the references first, which the main process measures.

    A StepDistillError is noted as a stop too: the others leave after the shard they are in.
    """
    work = evaluation.work
    try:
        references = evaluation.measure_references() if state.is_main_process else {}
        engine = Engine(evaluation.subject, evaluation.order, work, state, evaluation.groups)
        engine.run(evaluation.shards)
    except StepDistillError:
        if work.path.is_dir():
            work.stop.touch()
        raise
    return references


def check_whole(evaluation: Evaluation) -> None:
    """UserError if another process's part is not there."""
    if missing := evaluation.work.missing(evaluation.shards):
        raise UserError(
            f"{evaluation.work.file(missing[0].number)} is not there, which another process wrote: "
            "all processes must see the folder of the output"
        )


def protocol_of(options: Options) -> Protocol:
    """By name; custom with its own extractor and size."""
    if options.protocol != "custom":
        return find_protocol(str(options.protocol))
    return custom(options.features or "inception", options.size)


def asked_of(options: Options) -> Asked:
    """The options that are the evaluation's own."""
    return Asked(
        output=Path(str(options.output)),
        num=options.num,
        seed=options.seed,
        repeats=options.repeats,
        batch_size=options.batch_size,
        metrics=names_of(options.metrics),
        prompts=options.prompts,
        reference=options.reference,
        weights=weights_of(options.weights),
        images=None if options.images is None else Path(options.images),
        replicates=options.bootstrap,
        skip_corrupt=options.skip_corrupt,
    )


def check_output(path: Path) -> None:
    """UserError for a record that is there, or a place that cannot be written."""
    if path.exists():
        raise UserError(f"{path} is there already: give another --output, or remove it")
    writable(path)


if __name__ == "__main__":
    guarded(main)
