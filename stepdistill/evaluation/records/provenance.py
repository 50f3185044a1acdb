"""Where a number was made: versions, commit, machine."""

from __future__ import annotations

import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    *("stepdistill", "torch", "torchvision", "diffusers", "transformers", "accelerate"),
    *("clean-fid", "torchmetrics", "torch-fidelity", "open_clip_torch", "lpips"),
    *("numpy", "scipy", "pillow"),
)


def versions() -> dict[str, str]:
    """Of Python, and of the installed packages that a value may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" if its files differ; None for an installed wheel.

    Files that are not the commit's do not count: records lie among them.
    """
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device, sampling: int) -> tuple[int, str]:
    """(bytes, of what): on a GPU the peak while ``sampling``, else all of this process's."""
    if device.type == "cuda":
        return sampling, "torch's allocator while sampling, with the extractors' weights"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    unit = 1 if platform.system() == "Darwin" else 1024
    return resident * unit, "all of the first process, its libraries and extractors too"
