"""The whole way: train, export, measure, show."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_quickstart_long_leaves_what_it_promises(tmp_path: Path) -> None:
    """A shortened ``quickstart --long``: both students, results.json with its keys, the page.

    Its numbers come from real runs of 12 iterations, so they are bad; what is checked is that each
    is there and that they agree with each other.
    """
    output = tmp_path / "run"
    program = importlib.import_module("stepdistill.trainers.quickstart")
    program.main(["--output", str(output), "--long", "--max-steps", "12", "--num_samples", "600"])
    record = json.loads((output / "results.json").read_text())
    for model in (record["teacher"], record["student"]):
        assert {"nfe", "fid", "num_samples", "class_accuracy", "ms_per_image"} <= model.keys()
    assert [row["nfe"] for row in record["students"]] == [1, 4]
    for row in record["students"]:
        ratio = (row["fid"] - record["fid_floor"]) / (
            record["teacher"]["fid"] - record["fid_floor"]
        )
        assert row["fid_ratio"] == pytest.approx(ratio)
        assert row["speed_up"] == record["teacher"]["ms_per_image"] / row["ms_per_image"]
    assert record["student"]["num_samples"] == 600
    assert record["seconds"] > 0
    assert record["versions"]["torch"]
    for folder in (output / "student", output / "four_steps" / "student"):
        assert (folder / "model_index.json").exists()
    page = (output / "report.html").read_text()
    assert f"{record['student']['fid']:.4f}" in page
