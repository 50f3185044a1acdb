"""The wheel alone: built, installed where the checkout cannot be seen, and run from elsewhere."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    """Build, install with --no-deps, and run commands from a folder that is not the checkout.

    The new environment sees the installed dependencies through a .pth file, but not the editable
    install: its finder is started by a .pth of this environment, which a path entry does not run.
    """
    _run([sys.executable, "-m", "build", "--wheel", "-o", str(tmp_path), str(ROOT)], tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"stepdistill"}
    for needed in (
        "stepdistill/trainers/dmd2.py",
        "stepdistill/trainers/recipes/sdxl-4step-lora-24gb.yaml",
        "stepdistill/evals/fid.py",
        "stepdistill/pipelines/__init__.py",
        "stepdistill/worlds/digits/classifier/model.safetensors",
        "stepdistill/worlds/digits/teacher/model_index.json",
        "stepdistill/worlds/digits-t2i/reference/statistics.safetensors",
        "stepdistill/worlds/digits-t2i/teacher/tokenizer/tokenizer.json",
        "stepdistill/worlds/digits-t2i/teacher/unet/diffusion_pytorch_model.safetensors",
        "stepdistill/templates/report.html.j2",
    ):
        assert needed in names, needed

    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = Path(_run([str(python), "-c", where], tmp_path).strip())
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    _run([str(python), "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)], tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = _run([str(python), "-c", "import stepdistill; print(stepdistill.__file__)"], elsewhere)
    assert Path(file.strip()).is_relative_to(home)
    command = str(home / "bin" / "stepdistill")
    listed = json.loads(_run([command, "methods", "--json"], elsewhere))
    assert {card["name"] for card in listed} >= {"dmd2", "ect"}
    arguments = ["--teacher", "digits", "--output", "run", "--max_steps", "2", "--batch_size", "8"]
    small = ["--evaluate_samples", "64", "--method.critic_steps", "2"]
    _run([command, "train", "dmd2", *arguments, *small], elsewhere)
    assert (elsewhere / "run" / "student" / "model_index.json").exists()
    _run([command, "sample", "run/student", "--output", "grid.png", "--num", "4"], elsewhere)
    assert (elsewhere / "grid.png").stat().st_size > 0


def _run(command: list[str], place: Path) -> str:
    """Standard output of a command that must succeed, in ``place``, without PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
