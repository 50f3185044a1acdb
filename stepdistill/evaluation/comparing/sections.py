"""Records that may share columns: a section for each protocol, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...errors import UserError
from .facts import TOLD, Fact, Facts, differences, facts, short
from .records import Record
from .wording import listed


@dataclass
class Section:
    """Records whose values may stand in one column."""

    protocol: str
    records: list[Record] = field(default_factory=list)
    apart: str = ""  # from an earlier section of the same protocol, in words

    @property
    def said(self) -> Facts:
        """Each fact, as the first record that has it says."""
        found: Facts = {}
        for record in self.records:
            for fact, value in facts(record).items():
                found.setdefault(fact, value)
        return found

    @property
    def told(self) -> str | None:
        """What the images are told, in words."""
        return self.said[TOLD]

    @property
    def shown(self) -> dict[str, str]:
        """The facts in words; one line for all metrics of which the same is said."""
        groups: dict[tuple[str, str], list[str]] = {}
        for fact, value in self.said.items():
            if value:
                groups.setdefault((fact.what, short(value)), []).append(fact.of)
        named = ((Fact(what, listed(of)).words, value) for (what, value), of in groups.items())
        return dict(named)

    def against(self, record: Record) -> Iterator[str]:
        """Each fact in which ``record`` differs from an earlier one, in words."""
        named: set[Fact] = set()
        for earlier in self.records:
            for fact, there, here in differences(earlier, record):
                if fact not in named:
                    named.add(fact)
                    yield (
                        f"{fact.words}: {short(there)} in {earlier.place}, {short(here)} in "
                        f"{record.place}"
                    )


def sections(records: Sequence[Record], each_alone: bool) -> list[Section]:
    """A section for each protocol, in the order in which they first appear.

    A protocol's name promises one count, one reference and one extractor. Records of one name that
    differ in them are mostly a run that was cut short or measured with another file, and a row
    that silently went into a table of its own would hide just that: UserError, which names two
    records and the fact. ``each_alone`` says that it is meant: one section for each set of facts.
    A metric that only some records have is no difference, nor is what it alone is measured on.
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
        fitting[0].records.append(record)
    return made
