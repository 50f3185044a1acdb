"""The report page: what it shows of a run, what is missing, and how a browser lays it out."""

from __future__ import annotations

import html
import importlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import chromium
from PIL import Image

from stepdistill.comparison import lost, students
from stepdistill.config import write_yaml
from stepdistill.errors import UserError
from stepdistill.grids import GAP, GREY, save_grid
from stepdistill.plots import POINTS, curve, thinned
from stepdistill.report import EARLIER, write_report

TEACHER = {
    "nfe": 35,
    "sampler": "heun",
    "steps": 18,
    "guidance_scale": 1.0,
    "fid": 0.0831,
    "num_samples": 50_000,
    "class_accuracy": 99.31,
    "diversity": 0.981,
    "ms_per_image": 6.412,
}
ONE = {
    "nfe": 1,
    "fid": 0.1214,
    "num_samples": 50_000,
    "class_accuracy": 98.72,
    "diversity": 0.957,
    "ms_per_image": 0.2053,
    "fid_ratio": 1.47,
    "speed_up": 31.23,
}
FOUR = {**ONE, "nfe": 4, "fid": 0.0975, "ms_per_image": 0.779, "fid_ratio": 1.18, "speed_up": 8.23}
RESULTS = {
    "world": "digits",
    "method": "dmd2",
    "seed": 7,
    "teacher": TEACHER,
    "student": ONE,
    "students": [ONE, FOUR],
    "fid_floor": 0.00213,
    "fid_ratio": 1.47,
    "speed_up": 31.23,
    "seconds": 312.4,
    "peak_memory_gb": 0.94,
    "versions": {"torch": "2.8.0"},
}
SETTINGS = {"teacher": "digits", "steps": 1, "max_steps": 1500, "data": "<none>"}
USAGE = 'pipeline = DiffusionPipeline.from_pretrained("{}")'


def metrics() -> list[dict[str, Any]]:
    """Lines as ``fit`` writes them: the generator has none before its first update."""
    lines: list[dict[str, Any]] = []
    for i in range(10, 1501, 10):
        fall = math.exp(-i / 400)
        line = {"iteration": i, "critic/loss": 0.4 + fall, "critic/denoising": 0.3 + fall}
        line |= {"critic/grad_norm": 0.8 + 5 * fall, "images_per_second": 640.0, "memory_gb": 0.92}
        if i >= 30:
            line |= {"generator/loss": 0.1 + fall, "generator/gan": 0.69, "generator/x0_std": 0.7}
            line |= {"generator/grad_norm": 0.5 + 20 * fall}
        lines.append(line)
        if i % 300 == 0:
            quality = {"eval/fid": 0.13 + fall, "eval/class_accuracy": 98.2}
            lines.append({"iteration": i, **quality, "eval/num_samples": 2_000})
    return lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything in it, and its page."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    for iteration in (300, 600, 1500):
        rows = [torch.linspace(-1, 1, 640).reshape(10, 1, 8, 8)] * 3
        save_grid(rows, folder / "samples" / f"{iteration:06d}.png")
    write_yaml({**SETTINGS, "method": {"gan_weight": 0.1}}, folder / "config.yaml", "train dmd2")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics()))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "student").mkdir()
    card = f"# A student\n\n```python\n{USAGE.format('.')}\n```\n"
    (folder / "student" / "README.md").write_text(card)
    write_report(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it without its page, to damage."""
    ignored = shutil.ignore_patterns("report.html")
    return Path(shutil.copytree(finished, tmp_path / "quickstart", ignore=ignored))


def words(page: str) -> str:
    """The page's text as a reader meets it."""
    shown = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", shown).split()))


def test_the_page_shows_what_was_recorded(finished: Path) -> None:
    """Each figure of results.json, the newest grid first, the settings and the student's lines."""
    shown = words((finished / "report.html").read_text())
    assert "dmd2: digits in 1 and 4 calls" in shown
    for figure in ("35", "0.0831", "99.31 %", "0.981", "50,000", "6.41 ms", "18 heun steps"):
        assert figure in shown, figure
    for figure in ("0.1214", "0.0975", "98.72 %", "0.957", "0.205 ms", "31.2 times", "8.2 times"):
        assert figure in shown, figure
    for figure in ("1.47", "1.18", "0.00213", "5.2 minutes", "0.94 GB", "Seed 7", "torch 2.8.0"):
        assert figure in shown, figure
    order = [shown.index(f"Iteration {i}") for i in ("1,500", "600", "300")]
    assert order == sorted(order)
    assert "iteration 1,500 of 1,500" in shown
    assert "method.gan_weight 0.1" in shown
    assert "data <none>" in shown  # escaped in the source
    assert USAGE.format((finished / "student").as_posix()) in shown


def test_curves_are_drawn_in_groups_with_the_last_value_and_the_teacher(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    text = [re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in drawn]
    quality, generator, critic, norms, samples, speed = text
    fid = "Frechet distance (2,000 samples)"
    assert {fid, "class accuracy, %", "98.2 (teacher 99.31)"} <= {*quality}
    assert {"loss", "gan", "0.69"} <= {*generator}
    assert {"loss", "denoising"} <= {*critic}
    assert {"generator", "critic"} <= {*norms}
    assert "x0 std" in samples
    assert {"images per second", "memory, GB"} <= {*speed}
    assert all("iteration" in group for group in text)
    named = re.findall(r'\bid="([^"]+)"', "".join(drawn))
    assert len(named) == len({*named})


def test_distances_are_compared_at_equal_sample_counts_only() -> None:
    lines = [{"iteration": 1, "eval/fid": 0.2, "eval/num_samples": 2_000}]
    assert curve("eval/fid", lines, {"fid": 0.1, "num_samples": 50_000}).teacher is None
    assert curve("eval/fid", lines, {"fid": 0.1, "num_samples": 2_000}).teacher == 0.1


def test_the_page_needs_nothing_from_anywhere(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.findall(r"https?://|@import|<script|<link", page)
    assert page.count("<img") == page.count('alt="Grid of samples') == 3


def test_the_same_run_gives_the_same_page(finished: Path, tmp_path: Path) -> None:
    """The second goes elsewhere, and nothing is left beside it."""
    page = write_report(finished, tmp_path / "elsewhere" / "page.html")
    assert page.read_bytes() == (finished / "report.html").read_bytes()
    assert list(page.parent.iterdir()) == [page]


def test_what_is_not_there_yet_is_named(finished: Path, run: Path) -> None:
    """Settings alone, then metrics alone: each absent piece has its sentence, no other has."""
    later = ("Not measured yet", "No metrics yet", "No samples yet", "No student yet")
    whole = words((finished / "report.html").read_text())
    assert not [said for said in (*later, "No settings") if said in whole]
    for folder in (run / "samples", run / "student"):
        shutil.rmtree(folder)
    (run / "results.json").unlink()
    kept = (run / "metrics.jsonl").read_text().split("\n")[0] + "\n"
    (run / "metrics.jsonl").unlink()
    shown = words(write_report(run).read_text())
    assert [said for said in later if said in shown] == list(later)
    assert "No settings" not in shown
    (run / "config.yaml").unlink()
    (run / "metrics.jsonl").write_text(kept)
    shown = words(write_report(run).read_text())
    assert "No settings" in shown
    assert "No metrics yet" not in shown


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_yaml(SETTINGS, tmp_path / "config.yaml", "stepdistill train ect --config config.yaml")
    shown = words(write_report(tmp_path).read_text())
    assert "ect: digits in 1 call" in shown
    assert "Easy consistency tuning" in shown


def test_the_program_prints_where_the_page_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").unlink()
    main = importlib.import_module("stepdistill.evals.report").main
    main([str(run)])
    main([str(run), "--output", str(run / "other.html")])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n{run / 'other.html'}\n"
    assert (run / "other.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{folder} is not a run folder"):
            write_report(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", '{"teacher": {'),
        ("results.json", '{"teacher": 1, "student": 2}'),
        ("results.json", '{"teacher": {}, "student": {"fid": 1}}'),
        ("metrics.jsonl", "not json\n"),
        ("metrics.jsonl", '{"critic/loss": 1}\n'),
        ("config.yaml", "a: [1"),
        ("config.yaml", "a word"),
        ("samples/000300.png", "no image"),
        ("samples/001500.png", "no image"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(str(run / name))):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_many_and_large_grids_are_thinned_and_shrunk(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for iteration in range(2000, 2060):
        Image.new("RGB", (1600, 400)).save(run / "samples" / f"{iteration:06d}.png")
    page = write_report(run).read_text()
    widths = [int(w) for w in re.findall(r'width="(\d+)" height="\d+" alt="Grid', page)]
    assert widths[0] == 1600
    assert 1 < len(widths) <= 1 + EARLIER
    assert max(widths[1:]) == 800


def test_the_newest_grid_of_a_run_inside_is_shown(run: Path) -> None:
    """As quickstart --long leaves its four-step run in four_steps/."""
    inside = run / "four_steps" / "samples"
    inside.mkdir(parents=True)
    for iteration in (300, 1600):
        Image.new("RGB", (70, 20)).save(inside / f"{iteration:06d}.png")
    page = write_report(run).read_text()
    assert "The run in four_steps/" in words(page)
    assert "Iteration 1,600 of four_steps: the teacher's rows above" in words(page)
    assert "Iteration 300 of four_steps" not in words(page)
    assert page.count('width="70" height="20"') == 1


def test_what_was_lost_is_said_in_words() -> None:
    assert lost(TEACHER, ONE) == (
        "1 network call a sample instead of 35, and 31.2 times as fast. The Frechet distance rose "
        "from 0.0831 to 0.1214 (lower is better): 1.47 times the teacher's, both counted from the "
        "floor. Class accuracy fell by 0.59 points, now 98.72 %."
    )
    better = {**ONE, "fid": 0.08, "fid_ratio": 0.96, "class_accuracy": 99.31}
    assert "fell from 0.0831 to 0.0800 (lower is better): 0.96 times" in lost(TEACHER, better)
    assert "Class accuracy stayed the same, now 99.31 %" in lost(TEACHER, better)
    assert lost(TEACHER, {"nfe": 2, "fid": math.nan}) == ("2 network calls a sample instead of 35.")


def test_students_are_each_shown_once_by_their_calls() -> None:
    assert [row["nfe"] for row in students({**RESULTS, "students": [FOUR, ONE]})] == [1, 4]
    alone = {"teacher": TEACHER, "student": {"nfe": 1}, "speed_up": 31.23, "fid_ratio": 1.47}
    assert students(alone) == [{"nfe": 1, "speed_up": 31.23, "fid_ratio": 1.47}]
    assert students({}) == []


def test_a_thinned_curve_keeps_its_mean() -> None:
    values = [float(i % 7) for i in range(10 * POINTS)]
    assert len(thinned(values)) == POINTS
    assert sum(thinned(values)) / POINTS == pytest.approx(sum(values) / len(values))
    assert thinned([3.0, 1.0]) == [3.0, 1.0]


def test_a_grid_holds_each_pixel_scaled(tmp_path: Path) -> None:
    """Tiles lie at (scale H + GAP) apart, grey between them; a short row ends early."""
    grey, colour = torch.full((2, 1, 4, 4), -1.0), torch.ones(1, 3, 4, 4)
    colour[:, 1:] = 0.0
    grey[1, 0, 0, 0] = 3.0  # clamped
    path = save_grid([grey, colour], tmp_path / "new" / "grid.png", scale=3)
    with Image.open(path) as image:
        assert image.size == (2 * 12 + GAP, 2 * 12 + GAP)
        assert image.getpixel((0, 0)) == (0, 0, 0)
        assert image.getpixel((12, 0)) == (GREY, GREY, GREY)
        assert [image.getpixel((12 + GAP + x, 2))[0] for x in (0, 2, 3)] == [255, 255, 0]
        assert image.getpixel((0, 12 + GAP)) == (255, 128, 128)
        assert image.getpixel((25, 25)) == (GREY, GREY, GREY)
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
    with Image.open(save_grid([grey], tmp_path / "large.png")) as image:
        assert image.size == (2 * 48 + GAP, 48)  # large enough to see, unless told otherwise


def test_what_is_no_grid_is_refused(tmp_path: Path) -> None:
    for rows in ([], [torch.zeros(1, 2, 8, 8)], [torch.zeros(1, 8, 8)]):
        with pytest.raises(ValueError, match="rows are"):
            save_grid(rows, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="scale"):
        save_grid([torch.zeros(1, 1, 8, 8)], tmp_path / "grid.png", scale=0)


# In each frame, once it is loaded: what is laid out, sent to the page around the frames.
PROBE = """
<script>addEventListener("load", () => {
  const sizes = (which) => [...document.querySelectorAll(which)].map((e) => {
    const box = e.getBoundingClientRect();
    return [Math.round(box.width), Math.round(box.height), e.naturalWidth ?? -1];
  });
  const scheme = getComputedStyle(document.body).backgroundColor;
  parent.postMessage({ width: innerWidth, needed: document.documentElement.scrollWidth, scheme,
    headings: sizes("h1, h2"), tables: sizes("table.models"), rows: sizes("table.models tr"),
    images: sizes("img"), plots: sizes("svg") }, "*");
});</script>
"""
FRAMES = """<!doctype html><pre id="found"></pre>
<script>addEventListener("message", (event) => {
  document.getElementById("found").textContent += JSON.stringify(event.data) + "\\n";
});</script>
<iframe src="probed.html" style="width: 390px; height: 900px; border: 0"></iframe>
<iframe src="probed.html" style="width: 1280px; height: 900px; border: 0"></iframe>
"""


@pytest.mark.slow
def test_a_browser_lays_the_page_out_from_disk(run: Path) -> None:
    """Headings, table, images and curves have a size at both widths, and nothing spills over."""
    page = write_report(run)
    dom = chromium(page, "--dump-dom")
    assert '<table class="models">' in dom
    assert "<td>0.1214</td>" in dom

    policy = re.compile(r"<meta http-equiv=[^>]*>")
    probed, count = policy.subn("", page.read_text())
    assert count == 1  # the page forbids scripts: the copy must not
    (run / "probed.html").write_text(probed + PROBE)
    (run / "frames.html").write_text(FRAMES)
    dom = chromium(run / "frames.html", "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    frames = [json.loads(line) for line in html.unescape(found[1]).split("\n") if line]
    assert sorted(frame["width"] for frame in frames) == [390, 1280]
    for frame in frames:
        assert frame["needed"] <= frame["width"]  # no sideways scrolling of the whole page
        assert len(frame["headings"]) == 6
        assert len(frame["tables"]) == 1
        assert len(frame["rows"]) == 9
        assert len(frame["images"]) == 3
        assert len(frame["plots"]) == 6
        for width, height, _ in (*frame["headings"], *frame["rows"]):
            assert width > 60
            assert height > 15
        for width, height, _ in frame["plots"]:
            assert width > 250
            assert height > 100
        for width, height, natural in frame["images"]:
            assert natural == 10 * 48 + 9 * GAP
            assert min(width, height) > 80


@pytest.mark.slow
def test_a_screenshot_shows_both_themes(run: Path) -> None:
    """The page is not blank, and its paper is light or dark as the reader's system is."""
    page = write_report(run)
    for scheme, light in (("1", True), ("0", False)):
        picture = run / f"{scheme}.png"
        theme = f"--blink-settings=preferredColorScheme={scheme}"
        chromium(page, f"--screenshot={picture}", "--window-size=1000,2200", theme)
        with Image.open(picture) as image:
            assert image.size == (1000, 2200)
            colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50  # text, curves and grey tiles, not one blank sheet
        count, paper = max(colours)
        assert count < 0.97 * 1000 * 2200
        assert (min(paper) > 200) if light else (max(paper) < 60)
