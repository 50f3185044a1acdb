"""The bytes of published networks: LoRA roles over one base, counted on the meta device."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from mid_networks import MIDS, dmd2

from stepdistill.fit import FitConfig
from stepdistill.footprint import Footprint, Part, footprint, micro_batch, parts_of

ROOT = Path(__file__).parent.parent
RECORD = json.loads((ROOT / "evals" / "records" / "memory.json").read_text())
MOST = {"all published": 1.35, "to_q, to_v": 1.10}
PUBLISHED = {"SDXL": 2.567, "SD 2.1": 0.866}


def memory_record() -> Any:
    return importlib.import_module("stepdistill.evals.memory_record")


@pytest.mark.slow
@pytest.mark.parametrize("row", RECORD["roles"], ids=lambda r: f"{r['network']} {r['targets']}")
def test_lora_roles_cost_a_part_of_their_base(row: dict[str, Any]) -> None:
    """Teacher, generator and critic hold at most 1.35 times the teacher's bytes at rank 64 on all
    of DMD2's published layers, and 1.10 on queries and values alone: no second base.
    """
    found = memory_record().role_row(row["network"], row["targets"])
    assert found == row
    assert found["parameters"] / 1e9 == pytest.approx(PUBLISHED[row["network"]], abs=1e-3)
    assert found["teacher_bytes"] == 2 * found["parameters"]
    assert found["bytes"] == found["teacher_bytes"] + 4 * found["adapter_parameters"]
    assert found["ratio"] <= MOST[row["targets"]]


def test_sdxl_fits_a_gpu_of_24_gb() -> None:
    """By the record, at 1024 pixels with LoRA roles: without a GAN, and with one checkpointed."""
    peaks = {(p["gan"], p["gradient_checkpointing"]): p["peak"] for p in RECORD["peaks"]}
    for setting in ((False, False), (False, True), (True, True)):
        assert peaks[setting] < 24e9
    assert peaks[True, False] > 24e9  # as README says
    assert not any("problem" in p for p in RECORD["peaks"])


@pytest.mark.slow
def test_the_recorded_peaks_are_what_is_estimated() -> None:
    """Of SDXL without GAN and checkpointing, the quickest to rehearse."""
    record, (row, *_) = memory_record(), RECORD["peaks"]
    assert record.sdxl_footprint(record.SETTINGS[0]).record()["peak"] == row["peak"]


def parts(method: Any, **fit: Any) -> dict[str, Part]:
    return {p.name: p for p in parts_of(method, method.real, FitConfig(**fit), fit.pop("ranks", 1))}


@pytest.mark.slow
def test_parts_of_full_and_lora_roles() -> None:
    """A full role has the teacher's weights once more; a LoRA role its adapters alone."""
    mid = MIDS["dit"]
    full = parts(dmd2(mid, "meta", rank=0, gan=True, checkpointed=False))
    lora = parts(dmd2(mid, "meta", rank=4, gan=True, checkpointed=False))
    assert list(full) == ["teacher", "critic", "generator", "head", "average (EMA)"]
    teacher, critic, adapters = full["teacher"], full["critic"], lora["critic"]
    assert lora["teacher"].weights == teacher.weights
    assert critic.weights == pytest.approx(teacher.weights, rel=1e-3)  # buffers are shared
    assert 0 < adapters.weights < 0.1 * teacher.weights
    assert adapters.weights == 4 * adapters.trainable == adapters.gradients
    assert critic.moments == 2 * critic.gradients == 8 * critic.trainable
    assert teacher.gradients == teacher.moments == 0
    assert full["average (EMA)"].weights == full["generator"].gradients
    assert lora["average (EMA)"].weights == lora["generator"].gradients


def test_eight_bit_moments_and_buckets_of_ranks() -> None:
    """Two bytes a weight and a little instead of eight; DDP holds the gradients once more."""
    method = dmd2(MIDS["dit"], "meta", rank=0, gan=False, checkpointed=False)
    config = FitConfig()
    plain = {p.name: p for p in parts_of(method, method.real, config)}["critic"]
    object.__setattr__(config, "adam_8bit", True)  # bitsandbytes may not be installed
    eight = {p.name: p for p in parts_of(method, method.real, config)}["critic"]
    assert 2 * eight.trainable < eight.moments < 2.2 * eight.trainable
    ranks = {p.name: p for p in parts_of(method, method.real, FitConfig(), 2)}["critic"]
    assert ranks.moments == plain.moments + plain.gradients


def test_what_is_on_the_cpu_takes_nothing_of_the_device() -> None:
    """Peaks are what stays on the device plus what moves, and the largest counts."""
    on = Part("critic", 10, weights=40, moments=80)
    off = Part("vae", 10, weights=1000, place="cpu")
    found = Footprint((on, off), {"critic": 7, "generator": 5})
    assert (found.resident, found.peak) == (120, 127)
    assert found.peaks == {"critic": 127, "generator": 125}
    assert found.record()["updates"]["generator"] == {"moving": 5, "peak": 125}
    assert Footprint((on, off)).peak == 120


def test_a_method_that_cannot_be_rehearsed_says_why() -> None:
    """The parts are counted all the same."""
    mid = MIDS["dit"]
    method = dmd2(mid, "meta", rank=4, gan=False, checkpointed=False)
    weights = parts_of(method, method.real, FitConfig())
    wrong = mid.conditioning("meta").replace(MIDS["unet"].conditioning("meta"))
    method.sample_shape = (3, 5, 7)
    found = footprint(method, weights, wrong, method.sample_shape, FitConfig(), "cpu")
    assert found.updates == {}
    assert found.problem
    assert "could not be rehearsed" in found.table()
    assert found.peak == found.resident > 0


def test_a_micro_batch_is_what_one_device_holds() -> None:
    """The global batch over ranks and accumulation."""
    assert micro_batch(FitConfig(batch_size=64, accumulate=4), 2) == 8
