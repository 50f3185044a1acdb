"""``eval compare``: intervals, what shares a column, what is best, and what is refused."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from compared_records import INCEPTION, REFERENCE, SPEED, record, write
from PIL import Image

from stepdistill.errors import StepDistillError, UserError
from stepdistill.evaluation.comparing.columns import BEST, LEVEL, column
from stepdistill.evaluation.comparing.estimates import (
    Estimate,
    from_error,
    over_seeds,
    told_apart,
    written,
)
from stepdistill.evaluation.comparing.front import Point, Tradeoff
from stepdistill.evaluation.comparing.placing import FAR, Box, placed
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.comparing.tables import Table, tables
from stepdistill.metrics.metric_names import (
    HIGHER,
    LOWER,
    METRICS,
    in_order,
    named,
)
from stepdistill.parser import words_together

FID = METRICS["fid"]


def compared(folder: Path, *records: dict[str, Any], each_alone: bool = False) -> list[Table]:
    """The tables of records written to files of ``folder``."""
    return tables(read_records(write(folder, *records)), each_alone)


def replaced_weights(one: dict[str, Any], i: int) -> dict[str, Any]:
    """The record of another model of the same name."""
    return {**one, "model": {**one["model"], "sha256": {"unet": f"{i:064x}"}}}


def command(*arguments: object) -> None:
    """``stepdistill eval compare ARGUMENTS``."""
    main = importlib.import_module("stepdistill.evals.compare_records").main
    main([str(argument) for argument in arguments])


# Intervals


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_the_interval_over_seeds_is_students(count: int) -> None:
    """As scipy's own interval of a t distribution, for any values."""
    values = [random.Random(i).gauss(3.0, 0.2) for i in range(count)]
    found = over_seeds(values)
    scale = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, count - 1, sum(values) / count, scale)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.seeds, found.by) == (count, "seeds")


def test_the_interval_of_two_seeds_in_closed_form() -> None:
    """With one degree of freedom t is Cauchy: its quantile is tan(0.475 pi)."""
    assert over_seeds([1.0, 4.0]).half == pytest.approx(1.5 * math.tan(0.475 * math.pi))
    assert over_seeds([1.0, 4.0]).value == 2.5
    assert over_seeds([4.0]) == Estimate(4.0)
    assert over_seeds([4.0, 4.0]) == Estimate(4.0, None, 2)  # chance, not certainty


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    rng = random.Random(0)
    drawn = [over_seeds([rng.gauss(7.0, 2.0) for _ in range(3)]) for _ in range(4000)]
    share = sum(one.low <= 7.0 <= one.high for one in drawn) / len(drawn)
    assert share == pytest.approx(0.95, abs=0.01)


def test_a_difference_is_told_by_the_root_of_the_squares() -> None:
    """3-4-5: halves of 3 and 4 tell a difference above 5; without an interval nothing is told."""
    a = Estimate(10.0, 3.0)
    assert told_apart(a, Estimate(15.01, 4.0)) is True
    assert told_apart(a, Estimate(4.99, 4.0)) is True
    assert told_apart(a, Estimate(14.99, 4.0)) is False
    assert told_apart(a, Estimate(99.0)) is None


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (8.3512, 0.1234, ("8.35", "0.12")),
        (0.003214, 0.000087, ("0.003214", "0.000087")),
        (12345.6, 78.9, ("12,346", "79")),
        (98.72, 0.996, ("98.72", "1.00")),
        (2.5, None, ("2.5", "")),
        (1234.5, None, ("1,234", "")),
        (1.0, 1e-12, ("1", "1e-12")),
    ],
)
def test_a_value_is_written_to_the_places_of_its_interval(
    value: float, half: float | None, expected: tuple[str, str]
) -> None:
    assert written(Estimate(value, half)) == expected


def test_seeds_of_one_model_are_one_row(tmp_path: Path) -> None:
    """Whether they are records of their own or repeats within one."""
    values = {0: 2.50, 50_000: 2.62, 100_000: 2.53}
    apart = [record(seed=seed, metrics={"fid": fid}) for seed, fid in values.items()]
    per_seed = [{"seed": seed, "fid": fid} for seed, fid in values.items()]
    inside = record(metrics={"fid": 2.5}, repeats=3, per_seed=per_seed)
    mixed = record(metrics={"fid": 2.5}, repeats=2, per_seed=per_seed[:2])
    wanted = over_seeds(list(values.values()))
    for i, records in enumerate((apart, [inside], [mixed, apart[2]])):
        folder = tmp_path / str(i)
        folder.mkdir()
        [table] = compared(folder, *records)
        [row] = table.rows
        assert row.values["fid"] == wanted
        assert row.seeds == 3


def trained(name: str, seed: int, fid: float, **changes: Any) -> dict[str, Any]:
    """A record of ``stepdistill compare``: weights of its own, and samples of its own seeds."""
    settings = {"max_steps": 900, "method.critic_steps": 3}
    cell = {"teacher": "digits", "method": "dmd2", "budget": 1.2e6, "settings": settings}
    own = record(name, 50_000 * seed, metrics={"fid": fid}, model__config_sha256={"a": name})
    return {**own, "cell": {**cell, "steps": 1, "seed": seed, "pairs": 0, **changes}}


def test_students_trained_alike_are_one_row(tmp_path: Path) -> None:
    """Of three seeds of training, with Student's interval over them; other settings and another
    budget are other rows, told apart where their names would be the same."""
    values = [2.50, 2.62, 2.53]
    students = [trained(f"s{i}", i, fid) for i, fid in enumerate(values)]
    longer = trained("s3", 0, 2.1, budget=2.4e6)
    other = trained("s4", 0, 2.2, method="sid")
    [table] = compared(tmp_path, *students, longer, other)
    assert [row.seeds for row in table.rows] == [3, 1, 1]
    assert table.rows[0].values["fid"] == over_seeds(values)
    names = ["dmd2, 1,200,000 calls of training", "dmd2, 2,400,000 calls of training", "sid"]
    assert table.names == names
    slower = trained("s5", 1, 2.3, settings={"max_steps": 800, "method.critic_steps": 3})
    [table] = compared(tmp_path, students[0], slower)
    assert [row.seeds for row in table.rows] == [1, 1]


def test_one_seed_has_the_interval_of_its_standard_error(tmp_path: Path) -> None:
    [table] = compared(tmp_path, record(errors={"fid": 0.05}))
    found = table.rows[0].values
    assert found["fid"] == from_error([2.5], 0.05)
    assert found["fid"].half == pytest.approx(scipy.stats.norm.ppf(0.975) * 0.05, rel=1e-4)
    assert found["recall"].half is None
    assert "1.96 standard errors" in table.intervals()
    assert "A value without ± has none" in table.intervals()
    folder = tmp_path / "all"
    folder.mkdir()
    [table] = compared(folder, record(metrics={"fid": 2.5}, errors={"fid": 0.05}))
    assert "A value without ± has none" not in table.intervals()


def test_equal_values_and_errors_of_zero_tell_no_interval(tmp_path: Path) -> None:
    """Two seeds of 98 % have the interval of their standard errors, two of 100 % have none."""
    metrics = {"class_accuracy": 98.0, "caption_accuracy": 100.0}
    errors = {"class_accuracy": 0.7, "caption_accuracy": 0.0}
    two = [record(seed=s, metrics=metrics, errors=errors) for s in (0, 50_000)]
    values = compared(tmp_path, *two)[0].rows[0].values
    assert values["class_accuracy"] == Estimate(98.0, 1.96 * 0.7, 2, "standard error")
    assert values["caption_accuracy"] == Estimate(100.0, None, 2)


def test_values_without_any_interval_are_said_to_have_none(tmp_path: Path) -> None:
    [table] = compared(tmp_path, record())
    assert "No value has an interval" in table.intervals()
    assert "--repeats 3 gives an interval to each" in table.intervals()
    assert table.verdicts() == []
    assert table.marked is False


def test_seeds_that_share_images_give_no_interval(tmp_path: Path) -> None:
    """Image i of an evaluation has seed + i: from 0 and from 1 all but one are the same images."""
    [table] = compared(tmp_path, record(seed=0), record(seed=1, metrics={"fid": 2.51}))
    assert table.rows[0].values["fid"] == Estimate(2.505, None, 2)
    assert "share 49,999 of 50,000 images" in table.notes[0]
    folder = tmp_path / "with errors"
    folder.mkdir()
    errors = [record(seed=s, errors={"fid": e}) for s, e in ((0, 0.05), (49_999, 0.07))]
    [table] = compared(folder, *errors)
    assert table.rows[0].values["fid"] == Estimate(2.5, 1.96 * 0.07, 2, "standard error")


# Rows and columns


def test_other_steps_weights_and_settings_are_other_rows(tmp_path: Path) -> None:
    """The teacher first, then by calls; names say no more than is needed to tell them apart."""
    four = {"sampling__steps": 4, "sampling__calls": 4}
    guided = {"sampling__guidance_scale": 3.0}
    records = [
        record("dmd2", **four),
        record("dmd2"),
        record("dmd2", **guided),
        record("ect"),
        record("edm", model__role="teacher", sampling__steps=18, sampling__calls=35),
    ]
    [table] = compared(tmp_path, *records)
    wanted = ["edm", "dmd2, 1 step", "dmd2, 1 step, guidance 3", "ect"]
    assert table.labels == [*wanted, "dmd2, 4 steps"]
    assert [row.calls for row in table.rows] == [35, 1, 1, 1, 4]
    # beside a column of steps, they are not said again
    assert table.names == ["edm", "dmd2", "dmd2, guidance 3", "ect", "dmd2"]
    assert [cell.text for cell in table.cells(4)[:2]] == ["4", "4"]


def test_names_that_are_all_the_same_are_numbered(tmp_path: Path) -> None:
    folders = [record("student", model__path=f"runs/{name}/student") for name in ("a", "b")]
    [table] = compared(tmp_path, *(replaced_weights(one, i) for i, one in enumerate(folders)))
    assert table.labels == ["student of a", "student of b"]
    same = {"model__path": "student", "model__sha256": None}
    [table] = compared(tmp_path, *(record(**same, sampling__plan={"r": r}) for r in (1, 2)))
    assert table.labels == table.names == ["student (1)", "student (2)"]


def test_whole_numbers_are_the_same_setting_as_fractions(tmp_path: Path) -> None:
    scales = [record(seed=s, sampling__guidance_scale=g) for s, g in ((0, 1), (50_000, 1.0))]
    [table] = compared(tmp_path, *scales)
    assert len(table.rows) == 1


def test_the_best_is_marked_in_the_metrics_own_direction() -> None:
    values = [Estimate(0.9, 0.05), Estimate(1.02, 0.05), Estimate(1.3, 0.05), None, Estimate(1.1)]
    assert column(replace(FID, goal=LOWER), values).marks == {0: BEST}
    assert column(replace(FID, goal=HIGHER), values).marks == {2: BEST}
    assert column(METRICS["diversity"], values).marks == {1: BEST}  # nearest to 1
    assert column(named("of_our_own"), values).marks == {}
    assert column(FID, values[:1]).marks == {}


def test_what_lies_inside_of_the_intervals_is_not_distinguished() -> None:
    values = [Estimate(2.0, 0.3), Estimate(2.3, 0.1), Estimate(3.0, 0.1), Estimate(2.2)]
    made = column(FID, values)
    assert made.marks == {0: BEST, 1: LEVEL}
    assert made.verdict(["a", "b", "c", "d"]) == (
        "FID (lower is better): a has the best value; not distinguishable from it: b; no interval "
        "to tell it from d."
    )
    far = column(FID, [Estimate(2.0, 0.1), Estimate(3.0, 0.1)])
    assert far.verdict(["a", "b"]) == (
        "FID (lower is better): a has the best value, distinguishable from every other."
    )
    bare = column(FID, [Estimate(2.0), Estimate(3.0, 0.1), Estimate(4.0)])
    assert bare.verdict(["a", "b", "c"]) is None
    assert column(FID, [Estimate(2.0), Estimate(2.0)]).verdict(["a", "b"]) is None
    # 0.95 and 1.05 differ, but are as near to the goal
    even = column(METRICS["diversity"], [Estimate(0.95, 0.01), Estimate(1.051, 0.01)])
    assert even.marks == {0: BEST, 1: LEVEL}


def test_times_of_different_places_are_not_compared(tmp_path: Path) -> None:
    slow = {**SPEED, "device": "cpu", "ms_per_image": 900.0}
    [table] = compared(tmp_path, record("a"), record("b", speed=slow))
    assert not any(one.marks for one in table.speeds)
    assert "not compared: a on NVIDIA H100, 64 images at a time; b on cpu" in table.places()
    folder = tmp_path / "same"
    folder.mkdir()
    [table] = compared(folder, record("a"), record("b", speed={**SPEED, "ms_per_image": 900.0}))
    assert table.speeds[0].marks == {0: BEST}
    assert table.places() == (
        "Times were measured on NVIDIA H100, 64 images at a time. Peak memory refers to weights "
        "and activations."
    )


def test_memory_is_never_the_best_and_says_of_what_it_is(tmp_path: Path) -> None:
    """That of a process holds the libraries too: a smaller one is no merit of a model."""
    cpu = {**SPEED, "device": "cpu, 1 threads", "memory_of": "resident memory of the process"}
    less = {**cpu, "peak_memory_bytes": 2**30, "ms_per_image": 1.0}
    [table] = compared(tmp_path, record("a", speed=cpu), record("b", speed=less))
    assert [one.marks for one in table.speeds] == [{1: BEST}, {0: BEST, 1: LEVEL}, {}]
    assert table.places() == (
        "Times were measured on cpu with 1 thread, 64 images at a time. Peak memory refers to "
        "resident memory of the process."
    )
    [table] = compared(tmp_path, record("a", speed=cpu), record("b"))
    both = "for a to resident memory of the process; for b to weights and activations."
    assert table.places().endswith(f"Peak memory refers {both}")


def test_seeds_timed_elsewhere_do_not_enter_the_mean(tmp_path: Path) -> None:
    slow = {**SPEED, "device": "cpu", "ms_per_image": 900.0}
    [table] = compared(tmp_path, record(), record(seed=50_000, speed=slow))
    assert table.rows[0].speeds["ms_per_image"] == Estimate(1.25)
    assert "the other seeds ran elsewhere" in table.notes[0]


def test_each_known_metric_says_what_it_is() -> None:
    for metric in METRICS.values():
        assert (metric.goal is None) == (metric.name == "fid_floor")
        for words in (metric.meaning, metric.convention):
            assert len(words) > 10
            assert not words.endswith(".")
    assert [metric.name for metric in in_order({"zeal", "kid", "fid"})] == ["fid", "kid", "zeal"]
    shorter = sorted([2.0, 0.4, 1.1], key=METRICS["diversity"].shortfall)
    assert shorter == [1.1, 0.4, 2.0]


# What shares a column


def test_protocols_have_tables_of_their_own(tmp_path: Path) -> None:
    made = compared(tmp_path, record("a"), record("b", protocol="digits"), record("c"))
    assert [table.section.protocol for table in made] == ["cifar10-edm", "digits"]
    assert [table.labels for table in made] == [["a", "c"], ["b"]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampling__num": 10_000}, "number of images: 50,000 in"),
        ({"extractors": {"inception": {**INCEPTION, "sha256": "c3" * 32}}}, "weights of inception"),
        ({"extractors": {"inception": {**INCEPTION, "resize": "TF"}}}, "resize of inception"),
        (
            {"reference": {"inception": {**REFERENCE["inception"], "sha256": "d4" * 32}}},
            "reference of inception: b2b2b2b2b2b2 in",
        ),
        ({"reference": {"inception": {"path": "own/"}}}, "reference of inception"),
        ({"sampling__told_sha256": "e5" * 32}, "hash of what the images of seed 0 are told"),
        ({"sampling__told": "nothing"}, "what the images are told"),
        ({"repeats": 3}, "repeats of fid: 1 in"),
    ],
)
def test_records_that_differ_in_what_decides_a_value_share_no_column(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """Refused, naming both and the fact; a table each where that is asked for."""
    files = write(tmp_path, record("a"), record("b", **changes))
    with pytest.raises(UserError) as refused:
        tables(read_records(files), False)
    for words in (says, *files, "--each_alone"):
        assert words in str(refused.value)
    made = tables(read_records(files), True)
    assert [table.labels for table in made] == [["a"], ["b"]]
    assert says.partition(":")[0] in made[1].section.apart


def test_classes_drawn_by_seed_differ_from_seed_to_seed_but_prompts_do_not(tmp_path: Path) -> None:
    prompts = {"sampling__told": "30,000 prompts in turn"}
    one = record("a", **prompts, sampling__told_sha256="aa" * 32)
    other = record("b", seed=50_000, **prompts, sampling__told_sha256="bb" * 32)
    with pytest.raises(UserError, match="hash of what the images are told"):
        compared(tmp_path, one, other)
    [table] = compared(tmp_path, record("a"), record("b", seed=50_000))
    assert len(table.rows) == 2


DINO = {"sha256": "f6" * 32, "resize": "none"}
ON = {"fid": "inception", "precision": "inception", "recall": "inception"}


def test_a_metric_that_one_lacks_is_no_difference(tmp_path: Path) -> None:
    """Nor is what it alone is measured on, if both say what each metric is measured on."""
    two = {"extractors": {"inception": INCEPTION, "dinov2": DINO}}
    both = {"fid": "inception", "fd_dinov2": "dinov2"}
    more = record("b", **two, metrics={"fid": 2.0, "fd_dinov2": 90.0}, measured_on=both)
    one = record("a", metrics={"fid": 3.0}, measured_on=ON)
    [table] = compared(tmp_path, one, more)
    assert [one.metric.name for one in table.metrics] == ["fid", "fd_dinov2"]
    assert table.metrics[1].estimates[0] is None
    assert table.cells(0)[-1].text == "–"
    assert table.section.shown["extractor of FID"] == "inception"
    assert table.section.shown["extractor of FD-DINOv2"] == "dinov2"


def test_extractors_of_records_that_do_not_say_which_metric_is_whose_must_be_the_same(
    tmp_path: Path,
) -> None:
    """FID may be on either: a column of both would be a mean over two extractors."""
    new = {"extractors": {"inception": INCEPTION, "dinov2": DINO}, "measured_on": ON}
    old = {"extractors": {"inception-tf": INCEPTION}, "reference": {"inception-tf": {"path": "b"}}}
    for other in (old, new):
        for order in (1, -1):
            with pytest.raises(UserError, match=r"extractors: .*inception in "):
                compared(tmp_path, *[record("a"), record("a", seed=50_000, **other)][::order])
    made = compared(tmp_path, record("a"), record("a", seed=50_000, **old), each_alone=True)
    assert [table.rows[0].values["fid"].seeds for table in made] == [1, 1]


LOOKS = {"inception": INCEPTION, "inception-tf": {**INCEPTION, "resize": "TensorFlow's"}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"measured_on": {**ON, "fid": "inception-tf"}}, "extractor of FID: inception in"),
        ({"measured_on": {"recall": "inception"}}, "extractor of FID: inception in"),
        (
            {"extractors": {**LOOKS, "inception": {**INCEPTION, "sha256": "c3" * 32}}},
            "weights of the extractor of FID: a1a1a1a1a1a1 in",
        ),
        (
            {"extractors": {**LOOKS, "inception": {**INCEPTION, "resize": "TF"}}},
            "resize of precision: bicubic",
        ),
        ({"reference": {"inception": {"sha256": "d4" * 32}}}, "reference of recall: b2b2"),
    ],
)
def test_what_each_metric_is_measured_on_must_be_the_same(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """Even of seeds of one model, and where both records hold the same extractors."""
    one = record("a", extractors=LOOKS, measured_on=ON)
    other = record("a", 50_000, **{"extractors": LOOKS, "measured_on": ON, **changes})
    with pytest.raises(UserError) as refused:
        compared(tmp_path, one, other)
    assert says in str(refused.value)


def test_the_least_of_three_looks_as_each_of_them_does(tmp_path: Path) -> None:
    least = {"metrics": {"fid_min_of_3": 2.0}, "repeats": 3, "extractors": LOOKS}
    one, other = (
        record(n, **least, measured_on={"fid": k}) for n, k in zip("ab", LOOKS, strict=True)
    )
    with pytest.raises(UserError, match="extractor of FID, least of 3: inception in"):
        compared(tmp_path, one, other)


def test_a_reference_that_a_metric_does_not_use_is_no_difference(tmp_path: Path) -> None:
    """An Inception Score has none, though FID looks through the same extractor."""
    on = {"measured_on": {"inception_score": "inception"}}
    scores = {"metrics": {"inception_score": 9.0}, **on}
    one = record("a", **scores)
    [table] = compared(tmp_path, one, record("b", **scores, reference={"inception": {"path": "x"}}))
    assert len(table.rows) == 2


@pytest.mark.parametrize(
    ("metric", "detail", "a", "b"),
    [
        ("kid", "subset_size", 1000, 100),
        ("inception_score", "splits", 10, 1),
        ("precision_recall", "nearest", 3, 5),
    ],
)
def test_records_that_draw_otherwise_share_no_column(
    tmp_path: Path, metric: str, detail: str, a: int, b: int
) -> None:
    """But the spread may differ, and older records, or those without the metric, do not say."""
    one, other = (record(n, details={metric: {detail: v}}) for n, v in (("a", a), ("b", b)))
    with pytest.raises(UserError, match=f"{detail.replace('_', ' ')} of .*: {a} in .*, {b} in "):
        compared(tmp_path, one, other)
    spread = {"deviation": 0.1, detail: a}
    one, other = (
        record(n, details={metric: {**spread, "deviation": d}}) for n, d in (("a", 0.1), ("b", 0.2))
    )
    [table] = compared(tmp_path, one, other, record("c"), record("d", details={}))
    assert len(table.rows) == 4


def test_the_minimum_of_three_stands_beside_no_single_value(tmp_path: Path) -> None:
    """Repeats with their values are seeds like others; their minimum has a column of its own."""
    per_seed = [{"seed": 50_000 * i, "fid": fid} for i, fid in enumerate((2.1, 2.0, 2.2))]
    metrics = {"fid": 2.0, "fid_min_of_3": 2.0}
    three = record("a", repeats=3, metrics=metrics, per_seed=per_seed)
    [table] = compared(tmp_path, three, record("b", metrics={"fid": 2.4}))
    assert [one.metric.name for one in table.metrics] == ["fid", "fid_min_of_3"]
    least = table.metrics[1].estimates
    assert least == [Estimate(2.0), None]
    assert table.rows[0].values["fid"].value == pytest.approx(2.1)


def test_the_deviation_that_papers_print_is_no_interval(tmp_path: Path) -> None:
    """It stands in a sentence of its own, at the record's own value, and moves no mark."""
    kid = {"kid": {"deviation": 4e-4, "subsets": 100, "subset_size": 1000}}
    metrics = {"kid": 1.5e-3, "inception_score": 9.5, "fid": 2.0}
    score = {"inception_score": {"deviation": 0.12, "splits": 10}}
    one = record("a", metrics=metrics, details=kid | score)
    seeds = [
        record("b", 50_000 * i, metrics={"kid": v}, details=kid) for i, v in enumerate((2e-3, 3e-3))
    ]
    [table] = compared(tmp_path, one, *seeds)
    shape = "Papers print {} with the standard deviation over parts of one evaluation, which is no "
    assert table.published() == [
        shape.format("KID") + "interval of it: a 0.00150 ± 0.00040, 100 subsets; "
        "b 0.00200 ± 0.00040, 100 subsets.",
        shape.format("Inception Score") + "interval of it: a 9.50 ± 0.12, 10 splits.",
    ]
    assert table.rows[0].values["kid"].half is None
    assert table.rows[1].values["kid"] == over_seeds([2e-3, 3e-3])


# Two sets of images


def images_record(path: str, **changes: Any) -> dict[str, Any]:
    """As ``eval images`` writes them: no model was sampled, and one reference for all."""
    made = record(metrics={"fid": 2.5, "kid": 1e-3}, speed=None, **changes)
    made["protocol"] = "images"
    made["model"] = {"path": path, "name": Path(path).name, "role": "other"}
    made["sampling"] = {"num": 1000, "seed": None}
    made["per_seed"] = [{"seed": 0, "fid": 2.5, "kid": 1e-3}]
    made["a"] = {"kind": "images", "path": path, "num_samples": 1000, "sha256": path.encode().hex()}
    made["reference"] = {"kind": "images", "path": "real", "num_samples": 1000, "sha256": "d4" * 32}
    return made


def test_two_sets_of_images_are_told_apart_by_what_was_measured(tmp_path: Path) -> None:
    [table] = compared(tmp_path, images_record("runs/a/samples"), images_record("runs/b/samples"))
    assert table.labels == ["samples of a", "samples of b"]
    assert [cell.text for cell in table.cells(0)] == ["–", "–", "–", "2.5 *", "0.001 *"]
    assert table.section.shown["reference of inception"] == "d4" * 6
    assert "--repeats" not in table.intervals()
    twice = [images_record("s"), images_record("s")]
    with pytest.raises(UserError, match="hold the same evaluation: the images of s: give one of"):
        compared(tmp_path, *twice)
    twice[1]["a"]["sha256"] = "e5" * 32  # the folder was filled anew
    assert len(compared(tmp_path, *twice)[0].rows) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": {"path": "other", "sha256": "c3" * 32}}, "reference of inception: d4"),
        ({"extractors": {"inception-tf": INCEPTION}}, "extractors: inception in"),
        ({"sampling": {"num": 999, "seed": None}}, "number of images: 1,000 in"),
        ({"sampling": {"num": None, "seed": None}}, "number of images: 1,000 in"),
    ],
)
def test_two_sets_of_images_share_a_column_as_others_do(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        compared(tmp_path, images_record("a"), {**images_record("b"), **changes})


def test_a_model_beside_images_has_its_seeds(tmp_path: Path) -> None:
    """Its samples of other seeds are one row; images that were drawn of a folder are no seeds."""
    sampled = [images_record("student") for _ in range(3)]
    for i, own in enumerate(sampled):
        own["sampling"]["seed"] = 1000 * i
        own["per_seed"] = [{"seed": 1000 * i, "fid": 2.5 + i}]
        own["a"] = {"kind": "model", "path": "student", "num_samples": 1000, "steps": 4}
    drawn = images_record("folder")
    drawn["sampling"]["seed"] = 7
    [table] = compared(tmp_path, *sampled, drawn)
    assert [(row.label, row.steps, row.seeds) for row in table.rows] == [
        ("student", 4, 3),
        ("folder", None, None),
    ]
    assert table.rows[0].values["fid"] == over_seeds([2.5, 3.5, 4.5])


def test_what_eval_images_writes_is_compared(tmp_path: Path) -> None:
    """The command's own record, of two folders of digits."""
    rng = np.random.default_rng(0)
    records = []
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        records.append(str(tmp_path / f"{name}.json"))
        images = importlib.import_module("stepdistill.evals.evaluate_images").main
        images([str(tmp_path / name), "digits", "--workers=1", f"--output={records[-1]}"])
    [table] = tables(read_records(records), False)
    assert table.labels == ["a", "b"]
    assert [row.values["fid"].half for row in table.rows] == [None, None]
    command(*records, "--output", tmp_path / "page.html", "--markdown")


# Trade-offs


def test_the_front_is_what_nothing_beats() -> None:
    """By its definition, over random points with ties; the cheapest first."""
    rng = random.Random(1)
    for goal in (LOWER, HIGHER, 1.0):
        metric = replace(FID, goal=goal)
        values = [(rng.randint(1, 6), rng.randint(0, 6) / 3) for _ in range(12)]
        points = [Point(str(i), i + 1, c, Estimate(q), False) for i, (c, q) in enumerate(values)]
        front = Tradeoff(metric, "calls", points).front()

        def beats(a: tuple[int, float], b: tuple[int, float], metric: Any = metric) -> bool:
            near, far = metric.shortfall(a[1]), metric.shortfall(b[1])
            return (a[0] < b[0] and near <= far) or (a[0] <= b[0] and near < far)

        wanted = {i for i, b in enumerate(values) if not any(beats(a, b) for a in values)}
        assert {*front} == wanted
        assert [values[i][0] for i in front] == sorted(values[i][0] for i in front)
    assert Tradeoff(named("unknown"), "calls", []).front() == []


def test_labels_overlap_nothing_and_stay_inside() -> None:
    bounds = Box(0, 0, 300, 200)
    rng = random.Random(2)
    for count in (1, 4, 9):
        points = [(rng.uniform(20, 280), rng.uniform(20, 180)) for _ in range(count)]
        taken = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
        boxes = placed(points, [(44.0, 12.0)] * count, taken, bounds)
        assert boxes is not None
        for i, box in enumerate(boxes):
            assert box.inside(bounds)
            assert not any(box.overlaps(other) for other in (*taken, *boxes[:i]))
            x = min(max(points[i][0], box.left), box.right)
            y = min(max(points[i][1], box.bottom), box.top)
            assert math.dist(points[i], (x, y)) <= FAR
    assert placed([(150, 100)] * 60, [(90.0, 40.0)] * 60, [], bounds) is None


# The command


def test_the_command_prints_the_table_and_writes_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    per_seed = [{"seed": 50_000 * i, "fid": fid} for i, fid in enumerate((2.1, 2.0, 2.2))]
    note = "Fewer images than features."
    one = record("a", repeats=3, metrics={"fid": 2.1}, per_seed=per_seed, notes=[note])
    files = write(tmp_path, one, record("b", metrics={"fid": 3.0}, errors={"fid": 0.05}))
    command(*files, "--json", tmp_path / "rows.json")
    printed = capsys.readouterr().out
    for words in ("a [1]", f"[1] {note}", "2.10 ± 0.25 *", "3.000 ± 0.098", "50,000 images"):
        assert words in printed
    rows = json.loads((tmp_path / "rows.json").read_text())["tables"][0]["rows"]
    half = over_seeds([2.1, 2.0, 2.2]).half
    assert rows[0]["metrics"]["fid"] == {
        "value": pytest.approx(2.1),
        "half_width": pytest.approx(half),
        "interval": "seeds",
        "seeds": 3,
        "mark": BEST,
    }
    assert [row["label"] for row in rows] == ["a", "b"]
    assert rows[0]["records"] == [files[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "rows.json"]


def test_markdown_has_as_many_cells_in_each_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"fid": 0.1}
    first = record("a|b", errors=errors, notes=["It is [odd]."])
    command(*write(tmp_path, first, record("c", errors=errors)), "--markdown")
    table, _, below = capsys.readouterr().out.partition("\n\n")
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.split("\n")]
    assert len(cells) == 4
    assert len({*cells}) == 1
    assert "**2.50 ± 0.20**" in table
    assert "2.50 ± 0.20 ≈" in table
    assert "\\[1] It is \\[odd]." in below


def test_lines_of_one_file_are_records_too(tmp_path: Path) -> None:
    lines = tmp_path / "all.jsonl"
    lines.write_text("".join(json.dumps(record(name)) + "\n\n" for name in "ab"))
    found = read_records([str(lines)])
    assert [one.place for one in found] == [f"{lines}, line 1", f"{lines}, line 3"]


def test_a_record_needs_none_of_its_optional_parts(tmp_path: Path) -> None:
    optional = ("repeats", "model__sha256", "sampling__guidance_scale", "sampling__dtype")
    optional += ("sampling__told", "sampling__told_sha256", "extractors", "reference", "speed")
    optional += ("versions", "commit", "processes", "seconds", "date", "sampling__steps")
    bare = record(**dict.fromkeys(optional), sampling__calls=None)
    [table] = compared(tmp_path, bare)
    assert [cell.text for cell in table.cells(0)] == ["–", "–", "1", "2.5", "0.67", "0.58"]
    assert table.places() == ""


def test_a_value_that_is_no_number_is_a_dash_with_a_note(tmp_path: Path) -> None:
    [table] = compared(tmp_path, record(metrics={"fid": math.nan, "recall": None, "kid": 0.1}))
    assert [one.metric.name for one in table.metrics] == ["kid"]
    assert table.notes == [f"FID of {tmp_path / '0.json'} is not a finite number."]


# Mistakes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ('{"format": 1, "prot', "is cut short, or is no JSON"),
        ('{"a": 1}\n{"a": 2}\n', "name a file of one record a line .jsonl"),
        ("[1, 2]", "it is no JSON object"),
        ('{"fid": 3.0}', "no record of stepdistill eval: it lacks format"),
        (json.dumps({"metric": "fid", "fid": 3.0}), "eval images A B --metrics fid --output"),
        (json.dumps(images_record("a") | {"reference": []}), "its reference is not an object"),
        (json.dumps(record(model__call=[1])), "its model.call is not an object"),
        (json.dumps(record(model__config_sha256="a")), "its model.config_sha256 is not an object"),
        (json.dumps({"format": 2}), "by a newer stepdistill (its format is 2, this one reads 1)"),
        (json.dumps(record(protocol=None)), "it lacks protocol"),
        (json.dumps(record(metrics={"fid": "low"})), "its metrics is not numbers by name"),
        (json.dumps(record(metrics={"fid": True})), "its metrics is not numbers by name"),
        (json.dumps(record(sampling__num=None)), "it lacks sampling.num"),
        (json.dumps(record(sampling__num=0)), "its sampling.num is not a whole number above 0"),
        (json.dumps(record(sampling__seed=True)), "its sampling.seed is not a whole number"),
        (json.dumps(record(model={})), "it lacks model.path"),
        (json.dumps(record(per_seed=[{"fid": 1.0}])), "each with its seed"),
        (json.dumps(record(errors={"fid": -1.0})), "its errors is not"),
        (json.dumps(record(measured_on={"fid": 1})), "its measured_on is not texts by name"),
        (json.dumps(record(details={"kid": 0.1})), "its details is not objects by name"),
        (json.dumps(record(speed={"ms_per_image": 0})), "its speed.ms_per_image is not"),
        (json.dumps(record(samples={"folder": 3})), "its samples.folder is not text"),
        (json.dumps(record(cell={"method": "sid"})), "its cell is not the teacher, method, budget"),
        ("\udce9", "cannot read the record"),
    ],
)
def test_a_file_that_holds_no_record_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as refused:
        command(file)
    assert says in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_there_or_given_twice_are_named(tmp_path: Path) -> None:
    [file] = write(tmp_path, record())
    with pytest.raises(UserError, match=f"there is no record {tmp_path}/nowhere.json"):
        command(file, tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=f"{tmp_path} is a folder"):
        command(tmp_path)
    same = tmp_path / ".." / tmp_path.name / "0.json"
    with pytest.raises(UserError, match=r"is given twice, as .* too: give each record once"):
        command(file, same)
    (tmp_path / "copy.json").write_text(Path(file).read_text())
    with pytest.raises(UserError, match="hold the same evaluation: student, steps 1, seed 0"):
        command(file, tmp_path / "copy.json")
    with pytest.raises(UserError, match="needs records"):
        command()


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, option: str) -> None:
    [file] = write(tmp_path, record(metrics={"strange": 1.0}))
    (tmp_path / "taken").mkdir()
    for target in (tmp_path / "taken", Path(file) / "page.html"):
        with pytest.raises(StepDistillError, match=re.escape("could not write the")) as refused:
            command(file, option, target)
        assert str(target) in str(refused.value)
    assert sorted(os.listdir(tmp_path)) == ["0.json", "taken"]


# The command line


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["a", "b"], ['["a", "b"]']),
        (
            ["a", "--output", "c", "b", "--markdown=true"],
            ['["a", "b"]', "--output", "c", "--markdown=true"],
        ),
        (["[a,b]"], ["[a,b]"]),
        (["--output", "c"], ["--output", "c"]),
        (["a", "--output"], ['["a"]', "--output"]),
        (["-h", "a"], ['["a"]', "-h"]),
    ],
)
def test_words_without_a_flag_are_one_list(given: Sequence[str], wanted: list[str]) -> None:
    assert words_together(given) == wanted


def test_another_scheduler_or_size_is_another_row(tmp_path: Path) -> None:
    """Equal weights do not make one model: a row each, with names that tell them apart."""
    files = {"scheduler/scheduler_config.json": "0" * 64, "model_index.json": "1" * 64}
    other = {**files, "scheduler/scheduler_config.json": "2" * 64}
    given = [
        record(model__config_sha256=files),
        record(seed=50_000, model__config_sha256=files),
        record(model__config_sha256=other),
        record(model__config_sha256=files, model__call={"num_frames": 9}),
        record(model__config_sha256=files, sampling__image_size=[32, 48]),
    ]
    [table] = compared(tmp_path, *given)
    assert [row.seeds for row in table.rows] == [2, 1, 1, 1]
    labels = [row.label for row in table.rows]
    assert len({*labels}) == 4
    assert sum("num_frames 9" in label for label in labels) == 1
    assert sum("32x48" in label for label in labels) == 1
