"""The page of ``eval compare``: what it shows, and how a browser lays it out."""

from __future__ import annotations

import html
import importlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from compared_records import SPEED, record, samples, write
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.comparing.drawing import LONGEST, shortened
from stepdistill.evaluation.comparing.page import render
from stepdistill.evaluation.comparing.records import read_records
from stepdistill.evaluation.comparing.samples import LARGEST, MOST, grid
from stepdistill.evaluation.comparing.tables import tables

BUILT_IN = Path(__file__).parent.parent / "evals" / "records" / "comparison"
LONG = "somebody/a-model-with-a-rather-long-name-1step"


def command(*arguments: object) -> None:
    """``stepdistill eval compare ARGUMENTS``."""
    main = importlib.import_module("stepdistill.evals.compare_records").main
    main([str(argument) for argument in arguments])


def evaluations(folder: Path) -> list[str]:
    """Records of two protocols: a teacher with three seeds, students with one, with pictures."""
    own: dict[str, Any] = {"sampling__steps": 18, "sampling__calls": 35, "model__role": "teacher"}
    speed = {**SPEED, "ms_per_image": 41.0, "ms_one_image": 260.0}
    own |= {"speed": speed, "samples": samples(folder, "edm", list(range(10)), 32)}
    made = [
        record("edm", seed=50_000 * i, metrics={"fid": fid, "recall": recall, "kid": 1e-3}, **own)
        for i, (fid, recall) in enumerate(((1.97, 0.62), (1.95, 0.63), (1.99, 0.61)))
    ]
    for i, (name, calls, fid) in enumerate((("dmd2", 1, 2.6), ("ect", 2, 2.2), (LONG, 1, 2.7))):
        tiles = samples(folder, f"run{i}", list(range(i, 10)), 32, tint=i + 1)
        measured = {"metrics": {"fid": fid, "recall": 0.6}, "errors": {"fid": 0.02}}
        steps = {"sampling__steps": calls, "sampling__calls": calls}
        times = {"speed": {**SPEED, "ms_per_image": 1.2 * calls}}
        made.append(record(name, samples=tiles, **measured, **steps, **times))
    made[-1]["notes"] = ["Fewer images than <features>: it may not be compared."]
    kid = {"deviation": 2e-4, "subsets": 100, "subset_size": 1000}
    for one in made:
        one["samples"]["told"] = [7 * seed % 10 for seed in one["samples"]["seeds"]]
        one["details"] = {"kid": kid}
        one["measured_on"] = dict.fromkeys(one["metrics"], "inception")
    large = samples(folder, "coco", [0, 1], 600)
    large["told"] = ["a red fox", "a small boat on a lake between mountains, at the break of dawn"]
    prompts = {"sampling__told": "30,000 prompts in turn", "sampling__num": 30_000}
    made.append(record("sd", protocol="coco2014-30k", samples=large, **prompts, speed=None))
    return write(folder, *made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records and their page."""
    made = tmp_path_factory.mktemp("compared")
    command(*evaluations(made), "--output", made / "page.html")
    return made


def words(page: str) -> str:
    """The page's text as a reader meets it."""
    shown = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", shown).split()))


def labels_in(drawing: str) -> list[str]:
    """The words of a drawing."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing)


def test_the_page_shows_each_row_and_what_may_not_be_compared(folder: Path) -> None:
    shown = words((folder / "page.html").read_text())
    for expected in (
        "The 2 tables below measure different things and may not be compared",
        "Protocol cifar10-edm",
        "Protocol coco2014-30k",
        "1.970 ± 0.050",  # 4.3027 * 0.02 / sqrt(3)
        "2.600 ± 0.039",
        "FID (lower is better): edm has the best value, distinguishable from every other.",
        "± is a 95 % interval",
        "no interval of it: edm 0.00100 ± 0.00020, 100 subsets.",
        "extractor of FID, KID and recall",
        "Times were measured on NVIDIA H100",
        "Peak memory refers to weights and activations.",
        "Fewer images than <features>: it may not be compared.",
        "Student's t over the seeds of a row",
        "Heusel et al. 2017",
        "b2b2b2b2b2b2",
        "Quality against cost",
    ):
        assert expected in shown, expected
    assert "nan" not in shown.lower().split()
    assert "None" not in shown.replace("None of these seeds", "").split()


def test_the_page_needs_nothing_from_anywhere(folder: Path) -> None:
    page = (folder / "page.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.findall(r"https?://|@import|<script|<link", page)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len({*identifiers})
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in used} <= {*identifiers}
    assert (folder / "page.html").stat().st_size < 1_500_000


def test_the_same_records_give_the_same_page(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*.json"))
    command(*files, "--output", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text() == (folder / "page.html").read_text()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_each_metric_is_drawn_against_calls_and_times(folder: Path) -> None:
    page = (folder / "page.html").read_text()
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    # fid, kid, recall of one protocol against two costs; fid, precision, recall against calls
    assert len(drawn) == 3 * 2 + 3
    by_calls, by_time = (labels_in(svg) for svg in drawn[:2])
    assert {"edm", "dmd2", "ect", shortened(LONG), "network calls an image"} <= {*by_calls}
    assert {"edm", "dmd2", "ect", shortened(LONG), "milliseconds an image"} <= {*by_time}
    assert {"1", "2", "35"} <= {*by_calls}  # the costs themselves are its ticks
    assert "On the front: dmd2 1, 2.6; ect 2, 2.2; edm 35, 1.97" in drawn[0]
    assert len(shortened(LONG)) <= LONGEST
    assert "var(--series)" in drawn[0]
    assert "var(--mark)" in drawn[0]
    assert not re.findall(r"#0[234]0[234]0[234]", page)


def test_times_of_two_devices_have_a_plot_each(tmp_path: Path) -> None:
    """And a metric without a direction has none."""
    slow = {**SPEED, "device": "cpu", "batch_size": 8}
    metrics = {"fid": 2.0, "fid_floor": 1.0}
    records = [record("a", metrics=metrics), record("b", metrics=metrics, speed=slow)]
    page = render(tables(read_records(write(tmp_path, *records)), False))
    drawn = [labels_in(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawn) == 3
    names = [{*words} & {"a", "b"} for words in drawn]
    assert names == [{"a", "b"}, {"a"}, {"b"}]
    assert "milliseconds an image (cpu, batch 8)" in drawn[2]


def test_crowded_points_are_labelled_by_number(tmp_path: Path) -> None:
    names = [f"a model with a long name {i}" for i in range(24)]
    metrics = [{"fid": 2.0 + 0.001 * i} for i in range(24)]
    records = [record(n, metrics=m, speed=None) for n, m in zip(names, metrics, strict=True)]
    page = render(tables(read_records(write(tmp_path, *records)), False))
    [drawing] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert not [label for label in labels_in(drawing) if label.startswith("a model")]
    assert {str(i) for i in range(1, 25)} <= {*labels_in(drawing)}


def test_names_are_written_as_they_are(tmp_path: Path) -> None:
    """Neither as mathematics, nor as markup."""
    records = [record("cost $x^2$ & <b>"), record("two", metrics={"fid": 3.0})]
    page = render(tables(read_records(write(tmp_path, *records)), False))
    drawn = [html.unescape(label) for label in labels_in(page)]
    assert "cost $x^2$ & <b>" in drawn
    assert "cost $x^2$ & <b>" in words(page)


# Samples


def test_equal_seeds_stand_in_one_column(folder: Path) -> None:
    """The seeds that all have, and the very pictures of these seeds."""
    made = tables(read_records([str(file) for file in sorted(folder.glob("*.json"))]), False)
    first, second = (grid(table.rows) for table in made)
    assert list(first.seeds) == list(range(2, 10))
    assert len(first.seeds) == MOST
    assert [label for label, _ in first.rows] == ["edm", "dmd2", LONG, "ect"]
    assert not first.missing
    assert not first.shrunk
    sizes = {(tile.width, tile.height) for _, tiles in second.rows for tile in tiles}
    assert sizes == {(LARGEST, LARGEST)}
    assert second.shrunk
    edm = dict(first.rows)["edm"]
    page = (folder / "page.html").read_text()
    samples(folder, "again", [5], 32)
    in_a_page = b64encode((folder / "again" / "000000.png").read_bytes()).decode()
    assert page.count(in_a_page) == 1
    assert edm[first.seeds.index(5)].source.endswith(in_a_page)
    assert 'alt="edm, seed 5"' in page


def test_rows_without_pictures_or_with_other_seeds_are_named(tmp_path: Path) -> None:
    folders = [samples(tmp_path, f"s{i}", [0, 1], 8) for i in range(2)]
    parts = [*folders, {"folder": "gone", "seeds": [0]}, samples(tmp_path, "other", [7, 8], 8)]
    records = [record(name, samples=part) for name, part in zip("abcd", parts, strict=True)]
    [table] = tables(read_records(write(tmp_path, *records, record("e"))), False)
    found = grid(table.rows)
    assert [label for label, _ in found.rows] == ["a", "b"]
    assert found.missing == [
        "No samples were saved, or are left, for c and e.",
        "None of these seeds were saved for d.",
    ]


def test_what_the_pictures_were_told_stands_below_them(tmp_path: Path) -> None:
    """Shortened, whole in the title; what only some rows say counts for all, and no more."""
    prompt = "a photograph of a <red> fox that jumps over a lazy dog in the snow"
    parts = [samples(tmp_path, name, [0, 1, 2, 3], 8) for name in "abc"]
    told = [[prompt, 3, None, "x"], [prompt, 3, None, "y"], None]
    given = [p if t is None else {**p, "told": t} for p, t in zip(parts, told, strict=True)]
    records = [record(name, samples=part) for name, part in zip("abc", given, strict=True)]
    made = tables(read_records(write(tmp_path, *records)), False)
    found = grid(made[0].rows)
    assert list(found.told) == [prompt, "class 3", "", None]
    assert found.missing == ["Not all pictures of seed 3 were told the same."]
    page = render(made)
    short = "a photograph of a <red> fox that jumps over a…"
    assert f'<td title="{html.escape(prompt)}">{html.escape(short)}</td>' in page
    assert '<td title="class 3">class 3</td>' in page
    assert "told the same:" not in words(page)
    for own in given:
        own.pop("told", None)
    page = render(tables(read_records(write(tmp_path, *records)), False))
    assert "<tfoot>" not in page
    assert "One column is one seed, told the same." in words(page)


def test_no_seed_in_common_is_said(tmp_path: Path) -> None:
    parts = [samples(tmp_path, "s", [0, 1], 8), samples(tmp_path, "t", [2, 3], 8)]
    records = [record(name, samples=part) for name, part in zip("ab", parts, strict=True)]
    page = render(tables(read_records(write(tmp_path, *records)), False))
    assert "No two models have a seed in common: a has 0 to 1; b has 2 to 3." in words(page)
    assert "<img" not in page


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, record(samples=samples(tmp_path, "s", [0, 1], 8)))
    broken = tmp_path / "s" / "000001.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UserError, match=re.escape(f"{broken} is damaged")):
        command(*files, "--output", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_one_record_alone_has_a_page(tmp_path: Path) -> None:
    """One row, nothing marked, and a point without a rival."""
    page = render(tables(read_records(write(tmp_path, record(speed=None))), False))
    assert "student compared" in words(page)
    assert 'class="best"' not in page
    assert "No value has an interval" in words(page)
    assert page.count("<svg") == 3


# In a browser

# In each frame, once it is loaded: what is laid out, sent to the page around the frames.
PROBE = """
<script>addEventListener("load", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const boxes = (within, which) => [...within.querySelectorAll(which)].map((e) => {
    const box = e.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom];
  });
  const plots = [...document.querySelectorAll("svg")].map((svg) => ({
    box: boxes(svg.parentElement, "svg")[0], labels: boxes(svg, "[id*=label-] text"),
    texts: boxes(svg, "text") }));
  const options = boxes(document, ".option");
  const natural = [...document.querySelectorAll("img")].map((e) => e.naturalWidth);
  parent.postMessage({ width: innerWidth, needed: document.documentElement.scrollWidth,
    text: document.body.innerText, tables: boxes(document, "table.compared"),
    rows: boxes(document, "table.compared tr"), images: boxes(document, "img"), natural, plots,
    options, grids: boxes(document, ".tiles"), paragraphs: boxes(document, "main p"),
  }, "*");
});</script>
"""
FRAMES = """<!doctype html><pre id="found"></pre>
<script>addEventListener("message", (event) => {
  document.getElementById("found").textContent += JSON.stringify(event.data) + "\\n";
});</script>
<iframe src="probed.html" style="width: 400px; height: 900px; border: 0"></iframe>
<iframe src="probed.html" style="width: 1400px; height: 900px; border: 0"></iframe>
"""


def laid_out(page: Path, place: Path, scheme: str) -> list[dict[str, Any]]:
    """What a browser makes of the page in a narrow and in a wide window."""
    policy = re.compile(r"<meta http-equiv=[^>]*>")
    probed, count = policy.subn("", page.read_text())
    assert count == 1  # the page forbids scripts: the copy must not
    (place / "probed.html").write_text(probed + PROBE)
    (place / "frames.html").write_text(FRAMES)
    theme = f"--blink-settings=preferredColorScheme={scheme}"
    wait = "--virtual-time-budget=5000"
    dom = chromium(place / "frames.html", "--dump-dom", wait, theme)
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    frames = [json.loads(line) for line in html.unescape(found[1]).split("\n") if line]
    assert sorted(frame["width"] for frame in frames) == [400, 1400]
    return frames


def check_layout(frames: list[dict[str, Any]]) -> None:
    """Nothing spills over, and no word of a plot lies over another."""
    for frame in frames:
        assert frame["needed"] <= frame["width"]  # no sideways scrolling of the whole page
        assert not re.search(r"\b(NaN|nan|Infinity|undefined)\b", frame["text"])
        # the text is as wide as the table, and in a wide window the pictures fit beside each other
        widths = [right - left for left, _, right, _ in frame["paragraphs"]]
        assert max(widths) == min(widths)
        if frame["width"] == 1400:
            assert {right - left for left, _, right, _ in frame["tables"]} == {*widths}
            assert max(right - left for left, _, right, _ in frame["grids"]) <= widths[0]
        assert all(bottom - top < 25 for _, top, _, bottom in frame["options"])
        for left, top, right, bottom in (*frame["rows"], *frame["images"]):
            assert min(right - left, bottom - top) > 15
        for plot in frame["plots"]:
            left, top, right, bottom = plot["box"]
            assert right - left > 300
            assert plot["labels"]
            assert all(left <= one[0] and one[2] <= right for one in plot["texts"])
            for i, one in enumerate(plot["labels"]):
                assert left <= one[0] <= one[2] <= right
                assert top <= one[1] <= one[3] <= bottom
                for other in plot["labels"][:i]:
                    apart = one[2] <= other[0] or other[2] <= one[0]
                    assert apart or one[3] <= other[1] + 1 or other[3] <= one[1] + 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["0", "1"])
def test_a_browser_lays_the_page_out(folder: Path, tmp_path: Path, scheme: str) -> None:
    """At both widths, in both themes, with all that it holds."""
    frames = laid_out(folder / "page.html", tmp_path, scheme)
    check_layout(frames)
    for frame in frames:
        assert len(frame["tables"]) == 2
        assert len(frame["rows"]) == 1 + 4 + 1 + 1
        assert len(frame["plots"]) == 9
        assert len(frame["images"]) == 4 * MOST + 2
        assert {*frame["natural"]} == {32, LARGEST}
        assert frame["options"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["0", "1"])
def test_the_built_in_comparison(tmp_path: Path, scheme: str) -> None:
    """The page of the records behind README's table: the digits' teacher by steps, and quickstart
    students of three seeds, which are as good as its 35 calls in one."""
    files = sorted(BUILT_IN.glob("*.json"))
    page = tmp_path / "page.html"
    command(*files, "--output", page)
    frames = laid_out(page, tmp_path, scheme)
    check_layout(frames)
    [table] = tables(read_records([str(file) for file in files]), False)
    for frame in frames:
        assert len(frame["rows"]) == 1 + len(table.rows) == 1 + len(files)
        assert len(frame["images"]) == len(files) * MOST
        assert {*frame["natural"]} == {8}
    fid = next(column for column in table.metrics if column.metric.name == "fid")
    marked = [row for i, row in enumerate(table.rows) if i in fid.marks]
    assert {row.calls for row in marked} == {1, 35}
    assert sum(row.calls == 1 for row in marked) >= 2


@pytest.mark.slow
def test_a_screenshot_shows_both_themes(folder: Path, tmp_path: Path) -> None:
    """The page is not blank, and its paper is light or dark as the reader's system is."""
    page = tmp_path / "page.html"
    page.write_bytes((folder / "page.html").read_bytes())
    for scheme, light in (("1", True), ("0", False)):
        shot = tmp_path / f"{scheme}.png"
        theme = f"--blink-settings=preferredColorScheme={scheme}"
        chromium(page, f"--screenshot={shot}", "--window-size=1400,2200", theme)
        with Image.open(shot) as image:
            colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
        _, paper = max(colours)
        assert (min(paper) > 200) if light else (max(paper) < 60)
