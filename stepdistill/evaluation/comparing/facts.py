"""What determines a value beside the model: facts in which two records of one column agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...metrics.metric_names import named
from .records import Record
from .wording import listed

ALONE = {"inception_score"}  # looks through an extractor that others compare by, and does not
SPREAD = {"deviation", "subsets"}  # details that change no expected value: the spread, and of what


class Fact(NamedTuple):
    """``what`` is said ``of`` an extractor, of a metric, or of the record if that is empty."""

    what: str
    of: str = ""

    @property
    def words(self) -> str:
        """As a message names it."""
        return f"{self.what} of {self.of}" if self.of else self.what


NUMBER, TOLD = Fact("number of images"), Fact("what the images are told")
REFERENCE = "reference"
Facts = dict[Fact, str | None]  # None where the record does not say


def facts(record: Record) -> Facts:
    """All that is known of a record, for a reader."""
    return {**of_images(record), **(of_metrics if _says(record) else of_extractors)(record)}


def differences(a: Record, b: Record) -> Iterator[tuple[Fact, str | None, str | None]]:
    """The facts that both have, and differ in: (fact, a's value, b's).

    Where both say what each metric is measured on, that is compared for each metric that both have.
    Otherwise a name of an extractor that one has and the other has not may be what a metric of the
    same name is measured on, so that extractors are compared, and their names too.
    """
    seen = of_metrics if _says(a) and _says(b) else of_extractors
    own, others = ({**of_images(one), **seen(one)} for one in (a, b))
    for fact, value in own.items():
        if fact in others and others[fact] != value:
            yield fact, value, others[fact]


def of_images(record: Record) -> Facts:
    """The images, what they were told, the repeats, and how metrics drew from them.

    The prompts' hash counts at any seed; that of classes drawn by the image's seed, which ``told``
    says, differs from seed to seed and counts at equal seeds.
    """
    sampling = record.sampling
    told = sampling.get("told")
    seed = f" of seed {record.seed}" if told and "seed" in told else ""
    found: Facts = {
        NUMBER: None if record.num is None else f"{record.num:,}",
        TOLD: told,
        Fact(f"hash of what the images{seed} are told"): sampling.get("told_sha256"),
    }
    rows = record.content.get("per_seed") or ()
    measured = {metric for row in rows for metric in row}
    for metric in record.content["metrics"]:
        if metric not in measured:  # of all repeats at once, such as their minimum
            found[Fact("repeats", metric)] = str(record.repeats)
    for metric, details in record.part("details").items():
        for name, value in details.items():
            if name not in SPREAD:
                found[Fact(name.replace("_", " "), named(metric).label)] = str(value)
    return found


def of_metrics(record: Record) -> Facts:
    """For each metric what it is measured on: the view, its extractor and its reference."""
    found: Facts = {}
    for metric in record.metrics:
        key, label = record.measured_on(metric), named(metric).label
        found[Fact("extractor", label)] = key
        if key is None:
            continue
        extractor = record.part("extractors").get(key)
        if extractor is not None:
            found[Fact("weights of the extractor", label)] = extractor.get("sha256")
            found[Fact("resize", label)] = extractor.get("resize")
        if key in record.references and metric not in ALONE:
            found[Fact(REFERENCE, label)] = _hash(record.references[key])
    return found


def of_extractors(record: Record) -> Facts:
    """Extractors and references by the extractor's name, and the names themselves."""
    extractors = record.part("extractors")
    found: Facts = {Fact("extractors"): listed(sorted(extractors)) or None}
    for name, reference in record.references.items():
        found[Fact(REFERENCE, name)] = _hash(reference)
    for name, extractor in extractors.items():
        found[Fact("weights", name)] = extractor.get("sha256")
        found[Fact("resize", name)] = extractor.get("resize")
    return found


def _says(record: Record) -> bool:
    return record.content.get("measured_on") is not None


def _hash(reference: Mapping[str, Any]) -> str | None:
    return _plain(reference.get("sha256")) or reference.get("path")


def _plain(value: Any) -> str | None:
    """A hash, or those of a folder's files, as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {own}" for name, own in sorted(value.items()))
    return None if value is None else str(value)


def short(value: Any) -> str:
    """A fact's value as it is shown: a hash by its first twelve digits."""
    if value is None:
        return "none"
    text = str(value)
    hexadecimal = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if hexadecimal else text
