"""What determines a value beside the model: records that differ in it share no column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from .records import Record

Facts = Mapping[str, str | None]  # a fact in words -> its value; None where the record has none


def facts(record: Record) -> dict[str, str | None]:
    """Of a record: the images, what they were told, references and extractors, the repeats.

    The prompts' hash counts at any seed; that of classes drawn by the image's seed, which ``told``
    says, differs from seed to seed and counts at equal seeds.
    """
    sampling = record.sampling
    told = sampling.get("told")
    seed = f" of seed {record.seed}" if told and "seed" in told else ""
    found: dict[str, str | None] = {
        "number of images": f"{record.num:,}",
        "what the images are told": told,
        f"hash of what the images{seed} are told": sampling.get("told_sha256"),
    }
    for name, reference in record.part("reference").items():
        found[f"reference of {name}"] = reference.get("sha256") or reference.get("path")
    for name, extractor in record.part("extractors").items():
        found[f"weights of {name}"] = extractor.get("sha256")
        found[f"resize of {name}"] = extractor.get("resize")
    rows = record.content.get("per_seed") or ()
    measured = {metric for row in rows for metric in row}
    for metric in record.content["metrics"]:
        if metric not in measured:  # of all repeats at once, such as their minimum
            found[f"repeats of {metric}"] = str(record.repeats)
    return found


@dataclass
class Section:
    """Records whose values may stand in one column, and the facts they share.

    ``said`` keeps for each fact its value and the first record that said it.
    """

    protocol: str
    records: list[Record] = field(default_factory=list)
    said: dict[str, tuple[str | None, Record]] = field(default_factory=dict)
    apart: str = ""  # from an earlier section of the same protocol, in words

    def against(self, record: Record) -> Iterator[str]:
        """Each fact in which ``record`` differs from an earlier one, in words."""
        for name, value in facts(record).items():
            known, earlier = self.said.get(name, (value, record))
            if value != known:
                there, here = (short(each) for each in (known, value))
                yield f"{name}: {there} in {earlier.place}, {here} in {record.place}"

    def add(self, record: Record) -> None:
        """Put it in; nothing may stand against it."""
        self.records.append(record)
        for name, value in facts(record).items():
            self.said.setdefault(name, (value, record))


def sections(records: Sequence[Record], each_alone: bool) -> list[Section]:
    """A section for each protocol, in the order in which they first appear.

    A protocol's name promises one count, one reference and one extractor. Records of one name that
    differ in them are mostly a run that was cut short or measured with another file, and a row
    that silently went into a table of its own would hide just that: UserError, which names two
    records and the fact. ``each_alone`` says that it is meant: one section for each set of facts.
    A metric that only some records have is no difference, nor are its extractor and reference.
    """
    made: list[Section] = []
    for record in records:
        same = [section for section in made if section.protocol == record.protocol]
        against = [list(section.against(record)) for section in same]
        if same and all(against) and not each_alone:
            raise UserError(
                f"records of the protocol {record.protocol} differ in what decides their values "
                f"({'; '.join(against[0])}): leave one out, or give --each_alone for a table each"
            )
        fitting = [section for section, words in zip(same, against, strict=True) if not words]
        if not fitting:
            fitting = [Section(record.protocol, apart="; ".join(against[0]) if same else "")]
            made += fitting
        fitting[0].add(record)
    return made


def short(value: Any) -> str:
    """A fact's value as it is shown: a hash by its first twelve digits."""
    if value is None:
        return "none"
    text = str(value)
    hexadecimal = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if hexadecimal else text
