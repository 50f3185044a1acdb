"""The record of an evaluation: one JSON object with all that decides its value, and the value."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...assets import Asset
from ...metrics.extractors import unpublished
from ...metrics.features import Features, Scorer
from ...metrics.frechet import few_samples
from ...metrics.scorers.lpips_distance import ImageDistance
from ..measures.measure import LPIPS, Frechet, Values
from ..protocols import Protocol
from ..reading.measuring import Measured
from ..running.evaluation import Evaluation
from .provenance import commit, versions
from .speed import speed

FORMAT = 1


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """What decides the samples and what they are seen by: what must be equal to go on."""
    subject, order = evaluation.subject, evaluation.order
    plan = subject.model.plan
    seen: dict[str, Features | Scorer | ImageDistance] = {**order.views, **order.scorers}
    if evaluation.groups is not None:
        seen[LPIPS] = evaluation.groups.distance
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
        "images": None if order.images is None else str(order.images),
        "versions": versions(),
        "commit": commit(),
        "device": evaluation.device.type,
    }


def record_of(
    evaluation: Evaluation,
    references: Mapping[str, Measured],
    settings: Mapping[str, Any],
    processes: int,
) -> dict[str, Any]:
    """The record, once all shards are there; ``settings`` are those that they were begun with."""
    order, work = evaluation.order, evaluation.work
    found = evaluation.found(references)
    facts = [work.facts(shard.number) for shard in evaluation.shards]
    of_speed = speed(evaluation.subject, order, facts, evaluation.device)
    sampling = {
        **settings["sampling"],
        "calls": of_speed.pop("calls"),
        "image_size": facts[0]["image_size"],
        "seconds": sum(spent for fact in facts for _, spent in fact["seconds"]),
    }
    own = range(order.shown)
    return {
        "format": FORMAT,
        **settings,
        "metrics": {**found.repeats[0], **over_repeats(found.repeats, evaluation.protocol)},
        "errors": found.errors,
        "details": found.details,
        "measured_on": found.measured_on,
        "per_seed": per_seed(found.repeats, order.seed, order.num),
        "notes": notes(evaluation, references, min(facts[0]["image_size"])),
        "sampling": sampling,
        "reference": {key: one.record for key, one in references.items()},
        "speed": of_speed,
        "samples": {
            "folder": order.samples.name,
            "seeds": list(order.seeds(own)),
            "told": order.told_to(own),
        },
        "processes": processes,
        "date": datetime.date.today().isoformat(),
    }


def over_repeats(repeats: Sequence[Values], protocol: Protocol) -> Values:
    """The least distance of so many repeats as the source takes it of, under a name of its own."""
    count = protocol.minimum_of
    if len(repeats) != count or count == 1 or "fid" not in repeats[0]:
        return {}
    return {f"fid_min_of_{count}": min(values["fid"] for values in repeats)}


def per_seed(repeats: Sequence[Values], seed: int, num: int) -> list[dict[str, float]]:
    """Each repeat's values and the seed of its first sample."""
    return [{"seed": seed + i * num, **values} for i, values in enumerate(repeats)]


def notes(evaluation: Evaluation, references: Mapping[str, Measured], image_size: int) -> list[str]:
    """What is known to differ from the published numbers, and why a value may not be compared."""
    protocol, order, measures = evaluation.protocol, evaluation.order, evaluation.measures
    said = [*protocol.notes, *_counts(evaluation)]
    said += [note for one in references.values() for note in one.notes]
    for view in dict.fromkeys(m.view for m in measures if m.view is not None):
        features = order.views[view.key]
        said.append(unpublished(replace(features, name=view.extractor)) or "")
        if view.crop is not None and image_size < view.crop:
            said.append(
                f"{view.key}: samples of {image_size} pixels are smaller than the patch of "
                f"{view.crop}, and are seen whole"
            )
    said += _unchecked(protocol.reference, "reference") if references else []
    if references and evaluation.asked.reference and callable(protocol.reference):
        said.append(
            f"distances are to a reference that was given, and not to {protocol.name}'s own; what "
            "is no distance stays against that"
        )
    if evaluation.subject.model.is_told_by_text:
        said += _unchecked(protocol.prompts, "prompts")
    said += evaluation.subject.notes
    return list(dict.fromkeys(note for note in said if note))


def _counts(evaluation: Evaluation) -> list[str]:
    """Of samples: other than the protocol's, fewer than features, more than prompts."""
    protocol, order, said = evaluation.protocol, evaluation.order, []
    frechet = [measure for measure in evaluation.measures if isinstance(measure, Frechet)]
    if protocol.num is not None and order.num != protocol.num:
        moved = "raise" if order.num < protocol.num else "lower"
        which = "fewer" if order.num < protocol.num else "more"
        why = f": {which} {moved} a Frechet distance" if frechet else ""
        said.append(
            f"{order.num:,} samples, and the protocol's count is {protocol.num:,}{why}; such a "
            "value stands beside others of the same count alone"
        )
    said += [few_samples(order.num, order.views[m.seen.key].size) or "" for m in frechet]
    if evaluation.subject.model.is_told_by_text:
        distinct = len({*(order.told_to(range(order.num)) or [])})
        if distinct < order.num and isinstance(protocol.prompts, Asset):
            said.append(f"{order.num:,} samples of {distinct:,} prompts: some are told the same")
    return said


def _unchecked(asset: object, what: str) -> list[str]:
    """Of files without a published hash nobody can say that they are the protocol's."""
    if not isinstance(asset, Asset) or asset.sha256 is not None:
        return []
    return [f"no hash of the protocol's {what} is published: compare the one in this record"]


def describe(record: Mapping[str, Any]) -> str:
    """The record in lines."""
    sampling, speed_of, errors = record["sampling"], record["speed"], record["errors"]
    lines = [
        f"{record['model']['path']}, {record['protocol']}: {sampling['num']:,} samples, "
        f"{sampling['steps']} steps, {sampling['calls']} network calls"
    ]
    for name, value in record["metrics"].items():
        spread = f" ± {1.96 * errors[name]:.2g}" if name in errors else ""
        lines.append(f"  {name:24} {value:.6g}{spread}")
    if errors:
        lines.append("  (±: 95 % intervals)")
    per_image = speed_of["ms_per_image"]
    told = "" if per_image is None else f"{per_image:.3g} ms an image in batches, "
    lines.append(
        f"  {told}{speed_of['ms_one_image']:.3g} ms alone, "
        f"{speed_of['peak_memory_bytes'] / 2**30:.2f} GiB ({speed_of['device']})"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in record["notes"])])
