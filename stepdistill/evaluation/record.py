"""The record of an evaluation: one JSON object with all that decides its value, and the value."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import StepDistillError
from ..files import flush
from ..metrics.extractors import unpublished
from ..metrics.features import Features, Scorer
from ..metrics.frechet import few_samples
from .evaluate import Evaluation
from .measures import Values
from .measuring import Measured
from .provenance import commit, versions
from .speed import speed

FORMAT = 1


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """What decides the samples and what they are seen by: what must be equal to go on."""
    subject, order = evaluation.subject, evaluation.order
    plan = subject.model.plan
    seen: dict[str, Features | Scorer] = {**order.views, **order.scorers}
    return {
        "protocol": evaluation.protocol.name,
        "repeats": order.repeats,
        "model": subject.record(),
        "sampling": {
            "num": order.num,
            "seed": order.seed,
            "seeds": "sample i of all repeats has seed + i",
            "steps": subject.steps,
            "guidance_scale": subject.guidance_scale,
            "dtype": subject.dtype,
            "batch_size": order.batch_size,
            "plan": None if plan is None else plan.to_dict(),
            "told": order.told.words,
            "told_sha256": order.told.sha256(order.num, order.seed),
        },
        "extractors": {k: {"sha256": v.sha256, "resize": v.resize} for k, v in seen.items()},
    }


def record_of(
    evaluation: Evaluation, references: Mapping[str, Measured], processes: int
) -> dict[str, Any]:
    """The record, once all shards are there."""
    order, work = evaluation.order, evaluation.work
    repeats, errors = evaluation.values(references)
    of_speed = speed(evaluation.subject, order, work, evaluation.shards, evaluation.device)
    settings = settings_of(evaluation)
    sampling = {**settings.pop("sampling"), "calls": of_speed.pop("calls")}
    facts = [work.facts(shard.number) for shard in evaluation.shards]
    seconds = sum(spent for fact in facts for _, spent in fact["seconds"])
    return {
        "format": FORMAT,
        **settings,
        "metrics": {**repeats[0], **over_repeats(repeats, evaluation.protocol.minimum_of)},
        "errors": errors,
        "per_seed": per_seed(repeats, order.seed, order.num),
        "notes": notes(evaluation, references),
        "sampling": {**sampling, "image_size": facts[0]["image_size"], "seconds": seconds},
        "reference": {key: one.record for key, one in references.items()},
        "speed": of_speed,
        "samples": {
            "folder": order.samples.name,
            "seeds": list(order.seeds(range(order.shown))),
        },
        "versions": versions(),
        "commit": commit(),
        "processes": processes,
        "date": datetime.date.today().isoformat(),
    }


def over_repeats(repeats: Sequence[Values], minimum_of: int) -> Values:
    """The least distance of so many repeats as the source takes it of, under a name of its own."""
    if len(repeats) != minimum_of or minimum_of == 1 or "fid" not in repeats[0]:
        return {}
    return {f"fid_min_of_{minimum_of}": min(values["fid"] for values in repeats)}


def per_seed(repeats: Sequence[Values], seed: int, num: int) -> list[dict[str, float]]:
    """Each repeat's values and the seed of its first sample."""
    return [{"seed": seed + i * num, **values} for i, values in enumerate(repeats)]


def notes(evaluation: Evaluation, references: Mapping[str, Measured]) -> list[str]:
    """What is known to differ from the published numbers, and why a value may not be compared."""
    protocol, order = evaluation.protocol, evaluation.order
    said = list(protocol.notes)
    if protocol.num is not None and order.num != protocol.num:
        said.append(
            f"{order.num:,} samples, and the protocol's count is {protocol.num:,}: fewer raise a "
            "Frechet distance, so this value stands beside others of the same count alone"
        )
    for measure in evaluation.measures:
        if not measure.compares:
            continue
        few = few_samples(order.num, order.views[measure.seen.key].size)
        if few:
            said.append(f"{measure.name}: {few}")
    said += [note for one in references.values() for note in one.notes]
    for view in {m.view for m in evaluation.measures if m.view is not None}:
        features = order.views[view.key]
        said.append(unpublished(replace(features, name=view.extractor)) or "")
    if evaluation.asked.reference and protocol.reference is not None:
        said.append("compared with a reference of your own, not the protocol's")
    if evaluation.asked.prompts and protocol.prompts is not None:
        said.append("with prompts that were given, which may not be the protocol's")
    return [note for note in said if note]


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Aside, then renamed. StepDistillError if it cannot be written: the work stays."""
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(json.dumps(record, indent=1) + "\n")
        flush(aside)
        aside.replace(path)
    except OSError as error:
        raise StepDistillError(
            f"could not write the record {path} ({error}): mend that and give the same command "
            "again, the samples are kept"
        ) from error


def keep_features(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the features of each view's first repeat (N, D), and what they were made by."""
    folder.mkdir(parents=True, exist_ok=True)
    evidence, files = evaluation.repeat(0, {}), []
    for measure in evaluation.measures:
        if measure.view is None:
            continue
        features = evaluation.order.views[measure.view.key]
        file = folder / f"{measure.view.key}.safetensors"
        if file not in files:
            whole = torch.cat(list(evidence.blocks(measure.view)))
            save_file({"features": whole}, file, {"sha256": features.sha256})
            files.append(file)
    return files


def describe(record: Mapping[str, Any]) -> str:
    """The record in lines."""
    sampling, speed_of, errors = record["sampling"], record["speed"], record["errors"]
    lines = [
        f"{record['model']['path']}, {record['protocol']}: {sampling['num']:,} samples, "
        f"{sampling['steps']} steps, {sampling['calls']} network calls"
    ]
    for name, value in record["metrics"].items():
        spread = f" +- {errors[name]:.2g}" if name in errors else ""
        lines.append(f"  {name:24} {value:.6g}{spread}")
    per_image = speed_of["ms_per_image"]
    told = "" if per_image is None else f"{per_image:.3g} ms an image in batches, "
    lines.append(
        f"  {told}{speed_of['ms_one_image']:.3g} ms alone, "
        f"{speed_of['peak_memory_bytes'] / 2**30:.2f} GiB ({speed_of['device']})"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in record["notes"])])
