"""Render README's tables from the JSON records in evals/records/.

python -m stepdistill.evals.tables            # rewrite README.md between its markers
python -m stepdistill.evals.tables --check    # exit 2 if README.md differs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepdistill.cells.table import Group, groups, spread_text
from stepdistill.cells.table import markdown as methods_table
from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.errors import UserError
from stepdistill.evaluation.comparing.printed import markdown
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.comparing.tables import tables as tables_of

FAMILIES = "families.json"  # written by ``make families``
MEMORY = "memory.json"  # written by stepdistill.evals.memory_record
DISTANCE = "distance.json"  # by stepdistill.evals.distance_record
DECODING = "decoding.json"  # by stepdistill.evals.decode_record
COMPARISON = "comparison"  # a folder: by ``make comparison``
METHODS = "methods"  # a folder: the records of ``make methods-comparison``
TEXT = ("digits-t2i.json", "digits-flow.json")  # by stepdistill.evals.caption_students


@dataclass(frozen=True)
class Options:
    """Render README's tables.

    Args:
        readme: the file with a pair of markers for each table
        records: the folder of results.json files, one a run, and of the other tables' records
        check: only compare
    """

    readme: str = "README.md"
    records: str = "evals/records"
    check: bool = False


# digits behind the point
DIGITS = {"fid": 5, "fid_ratio": 2, "class_accuracy": 2, "speed_up": 1}
DIGITS |= {"caption_accuracy": 1, "diversity": 2}


def results_table(records: list[dict[str, Any]]) -> str:
    """One row for the teacher and one for each kind of run and number of calls."""
    teacher = records[0]["teacher"]
    lines = [
        "| model | calls | seeds | Frechet distance | ratio | class accuracy | speed-up |",
        "|---|---|---|---|---|---|---|",
        f"| teacher, Heun {teacher['steps']} steps | {teacher['nfe']} | 1 | {teacher['fid']:.5f} "
        f"| 1 | {teacher['class_accuracy']:.2f} % | 1 |",
    ]
    groups: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for record in records:
        for row in record["students"]:
            groups.setdefault((record["long"], row["nfe"]), []).append(row)
    for (long, nfe), rows in sorted(groups.items()):
        kind = "`quickstart --long`" if long else "`quickstart`"
        columns = [_spread(rows, key) for key in ("fid", "fid_ratio", "class_accuracy", "speed_up")]
        fid, ratio, accuracy, speed = columns
        lines.append(f"| {kind} | {nfe} | {len(rows)} | {fid} | {ratio} | {accuracy} % | {speed} |")
    count = teacher["num_samples"]
    lines += [
        "",
        f"{count:,} samples a figure, mean ± standard deviation over training seeds. A perfect "
        f"model scores {records[0]['fid_floor']:.5f} at this count; the ratio, student to teacher, "
        "is taken above that floor.",
    ]
    return "\n".join(lines)


def _spread(rows: list[dict[str, Any]], key: str, digits: int | None = None) -> str:
    return spread_text([row[key] for row in rows], DIGITS[key] if digits is None else digits)


def families_table(record: dict[str, Any]) -> str:
    """One row a family, with the largest difference that each proof measured on its tiny models."""
    lines = [
        "| family | task | pipeline | predicts | students | teacher | student | LoRA | bf16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["families"]:
        found = row["reached"]
        proofs = (f"{found[p]:.0e}" if p in found else "-" for p in record["proofs"])
        names = (row[key] for key in ("name", "task", "pipeline", "prediction", "scheduler"))
        lines.append(f"| {' | '.join((*names, *proofs))} |")
    return "\n".join(lines)


def memory_tables(record: dict[str, Any]) -> str:
    """Bytes of LoRA roles beside their teacher's, and the peaks of SDXL's updates."""
    lines = [
        f"| network | LoRA of rank {record['rank']} on | teacher | with generator and critic "
        "| ratio |",
        "|---|---|---|---|---|",
    ]
    for row in record["roles"]:
        held = f"{_gib(row['teacher_bytes'])} | {_gib(row['bytes'])} | {row['ratio']:.2f}"
        lines.append(f"| {row['network']} | {row['targets']} | {held} |")
    lines += [
        "",
        "| GAN | gradient checkpointing | encoders on | between updates | critic update "
        "| generator update |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["peaks"]:
        flags = ("yes" if row[name] else "no" for name in ("gan", "gradient_checkpointing"))
        peaks = (row["updates"][name]["peak"] for name in ("critic", "generator"))
        sizes = (_gib(size) for size in (row["resident"], *peaks))
        lines.append(f"| {' | '.join((*flags, row['encoders'], *sizes))} |")
    return "\n".join(lines)


def distance_sentence(record: dict[str, Any]) -> str:
    """What the Frechet distance takes, beside SciPy's root, and the most memory at any count."""
    first = record["sets"][0]
    most = max(record["sets"], key=lambda one: int(one["count"]))
    peak = max(one["peak_bytes"] for one in record["sets"]) / 1e9
    return (
        f"Of {first['count']:,} samples of {record['size']:,} features, on {record['threads']} "
        f"threads, SciPy's root of the covariances takes {first['scipy']['times_ours']:.1f} times "
        f"as long as the whole distance here; the process held {peak:.2f} GB at most, also for "
        f"{most['count']:,} samples."
    )


def decoding_sentence(record: dict[str, Any]) -> str:
    """How much of a small network's own pace is left where it reads files."""
    cases = []
    for case in record["cases"]:
        resized = "" if case["prepare"] == "none" else f" (resized {case['prepare']} way)"
        share = 100 * case["share_by_clock"]["median"]
        cases.append(f"{share:.0f} % on {case['images']}{resized}")
    return (
        "Image files are decoded by processes beside the network. By the clock, a small network on "
        f"one of {record['cores']} cores keeps so much of the images a second that it makes of "
        f"tensors in memory: {', '.join(cases)}."
    )


def comparison_table(records: Sequence[str]) -> str:
    """Of ``eval compare``, without times: they are of a processor that others may have used too."""
    untimed = [
        replace(record, content={**record.content, "speed": None})
        for record in read_records(records)
    ]
    return markdown(tables_of(untimed, each_alone=False))


def several_seeds(group: Group) -> bool:
    """Whether a table is for README; docs/methods.md has all."""
    return any(len(row.seeds) > 1 for row in group.rows)


def text_table(records: list[dict[str, Any]]) -> str:
    """Text-to-image teachers at their two best guidances, and their students by calls."""
    lines = [
        "| model | calls | seeds | Frechet distance | ratio | caption accuracy | diversity |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        teacher, students = record["teacher"], record["students"]
        name, best = students[0]["pipeline"], teacher["most_accurate"]
        lines.append(
            f"| {name}, guidance {teacher['guidance_scale']:g} | {teacher['nfe']} | 1 "
            f"| {teacher['fid']:.3f} | 1 | {teacher['caption_accuracy']:.1f} % "
            f"| {teacher['diversity']:.2f} |"
        )
        lines.append(
            f"| {name}, guidance {best['guidance_scale']:g} | {best['nfe']} | 1 | | "
            f"| {best['caption_accuracy']:.1f} % | {best['diversity']:.2f} |"
        )
        for nfe in sorted({row["nfe"] for row in students}):
            rows = [row for row in students if row["nfe"] == nfe]
            fid, ratio = _spread(rows, "fid", 3), _spread(rows, "fid_ratio")
            accuracy, diversity = (_spread(rows, key) for key in ("caption_accuracy", "diversity"))
            found = f"{fid} | {ratio} | {accuracy} % | {diversity}"
            lines.append(f"| {rows[0]['method']} student of it | {nfe} | {len(rows)} | {found} |")
    floor, count = records[0]["teacher"]["fid_floor"], records[0]["teacher"]["num_samples"]
    lines += [
        "",
        f"{count:,} samples a figure. A teacher stands at its guidance of the lowest distance and "
        f"at that of the highest accuracy ({best['num_samples']:,} samples). Real pictures score "
        f"{floor:.3f}; the ratio is taken above that.",
    ]
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Put each table between its markers."""
    options = parse("stepdistill.evals.tables", (Options,), {}, arguments).get(Options)
    records = Path(options.records)
    others = (FAMILIES, MEMORY, DISTANCE, DECODING, *TEXT)
    paths = sorted(path for path in records.glob("*.json") if path.name not in others)
    if not paths:
        raise UserError(f"{options.records} holds no records")
    compared = [str(path) for path in sorted((records / COMPARISON).glob("*.json"))]
    readme = Path(options.readme)
    text = wanted = readme.read_text()
    tables = {
        "results": results_table([json.loads(path.read_text()) for path in paths]),
        "families": families_table(json.loads((records / FAMILIES).read_text())),
        "text": text_table([json.loads((records / name).read_text()) for name in TEXT]),
        "distance": distance_sentence(json.loads((records / DISTANCE).read_text())),
        "decoding": decoding_sentence(json.loads((records / DECODING).read_text())),
        "comparison": comparison_table(compared),
        "memory": memory_tables(json.loads((records / MEMORY).read_text())),
    }
    if of_methods := [str(path) for path in sorted((records / METHODS).glob("*.json"))]:
        made = groups(read_records(of_methods))
        tables["methods"] = methods_table([group for group in made if several_seeds(group)])
    for name, rendered in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in wanted or end not in wanted:
            raise UserError(f"{readme} lacks the markers {begin} and {end}")
        before, after = wanted.split(begin)[0], wanted.split(end)[1]
        wanted = f"{before}{begin}\n{rendered}\n{end}{after}"
        print(rendered, file=sys.stdout)
    if options.check and wanted != text:
        raise UserError(f"{readme} is not what the records say: run this without --check")
    if wanted != text:
        readme.write_text(wanted)


if __name__ == "__main__":
    guarded(main)
