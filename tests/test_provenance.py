"""What a student's card says of where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

from stepdistill.comparison import lost, measured_rows
from stepdistill.distil import DistilOptions
from stepdistill.distil.provenance import learned_from, measured
from stepdistill.sources import shown_source


def test_data_in_words(tmp_path: Path) -> None:
    """Strangers read the last part of a local path, and names of the hub whole."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\n")
    options = {"teacher": "digits", "output": "runs/x"}
    assert learned_from(DistilOptions(**options, prompts=str(prompts))) == "prompts of prompts.txt"
    assert (
        learned_from(DistilOptions(**options, data=str(tmp_path))) == f"images of {tmp_path.name}"
    )
    assert learned_from(DistilOptions(**options, prompts="me/captions")) == "prompts of me/captions"
    assert learned_from(DistilOptions(**options)) == "what the teacher brings"
    assert shown_source(str(tmp_path)) == tmp_path.name
    assert shown_source("me/model") == "me/model"


def test_the_measurement_of_these_very_weights(tmp_path: Path) -> None:
    """Of an iteration measured twice the last, of one that was not nothing."""
    lines = [{"iteration": 2, "eval/fid": 3.0}, {"iteration": 4, "critic/loss": 1.0}]
    lines += [{"iteration": 4, "eval/fid": 2.0}, {"iteration": 4, "eval/fid": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured(path, 4) == {"fid": 1.0}
    assert measured(path, 3) == {}
    assert measured(tmp_path / "none.jsonl", 4) == {}


def test_caption_accuracy_on_the_page() -> None:
    """Its row and its sentence stand where it was measured, and nowhere else."""
    teacher = {"nfe": 40, "fid": 0.2, "caption_accuracy": 97.0}
    student = {"nfe": 1, "fid": 0.3, "caption_accuracy": 95.5}
    assert "Caption accuracy fell by 1.50 points, now 95.50 %" in lost(teacher, student)
    rows = measured_rows({"teacher": teacher, "student": student})
    assert [key for key, _, _ in rows] == ["nfe", "fid", "caption_accuracy"]
