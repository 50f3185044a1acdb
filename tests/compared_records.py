"""Records as ``stepdistill eval`` writes them, with pictures, for the tests of ``eval compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

INCEPTION = {"sha256": "a1" * 32, "resize": "bicubic to 299, as clean-fid"}
REFERENCE = {
    "inception": {"path": "cifar10.safetensors", "sha256": "b2" * 32, "num_samples": 50_000}
}
SPEED = {
    "ms_per_image": 1.25,
    "batch_size": 64,
    "ms_one_image": 9.5,
    "device": "NVIDIA H100",
    "peak_memory_bytes": 3 * 2**30,
    "memory_of": "weights and activations",
}


def record(name: str = "student", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One record; ``changes`` replace or, dotted with __, change its parts; None takes one away."""
    made: dict[str, Any] = {
        "format": 1,
        "protocol": "cifar10-edm",
        "repeats": 1,
        "metrics": {"fid": 2.5, "precision": 0.67, "recall": 0.58},
        "model": {
            "path": f"runs/{name}/student",
            "name": name,
            "pipeline": "ConsistencyModelPipeline",
            "role": "student",
            "sha256": {"unet/diffusion_pytorch_model.safetensors": f"{hash_of(name)}" * 8},
        },
        "sampling": {
            "num": 50_000,
            "seed": seed,
            "steps": 1,
            "calls": 1,
            "guidance_scale": None,
            "dtype": "float32",
            "batch_size": 64,
            "plan": None,
            "told": "one of 10 classes, drawn by the image's seed",
            "told_sha256": f"{seed:064x}",
            "image_size": [32, 32],
            "seconds": 300.0 + seed,
        },
        "extractors": {"inception": dict(INCEPTION)},
        "reference": dict(REFERENCE),
        "speed": dict(SPEED),
        "versions": {"torch": "2.15.0", "stepdistill": "0.1.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "processes": 1,
        "seconds": 312.0,
        "date": "2026-11-22",
    }
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        owner, last = (made[part], inner) if inner else (made, part)
        if value is None and not inner:
            owner.pop(last, None)
        else:
            owner[last] = value
    return made


def hash_of(name: str) -> str:
    """Eight hexadecimal digits of a name."""
    return f"{sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**32:08x}"


def write(folder: Path, *records: dict[str, Any]) -> list[str]:
    """Each into a file of its own; the paths."""
    files = [folder / f"{i}.json" for i in range(len(records))]
    for file, one in zip(files, records, strict=True):
        file.write_text(json.dumps(one))
    return [str(file) for file in files]


def samples(folder: Path, name: str, seeds: list[int], size: int, tint: int = 0) -> dict[str, Any]:
    """Pictures of those seeds, and the part of a record that names them."""
    (folder / name).mkdir()
    for i, seed in enumerate(seeds):
        y, x = np.mgrid[:size, :size] / max(1, size - 1)
        phase = np.random.default_rng(seed).uniform(0, 6, 3)
        waves = [np.sin(6 * x * (c + 1) + 5 * y + phase[c] + tint / 4) for c in range(3)]
        pixels = (127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i:06d}.png")
    return {"folder": name, "seeds": seeds}
