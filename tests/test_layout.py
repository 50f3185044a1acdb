"""The house as it is meant to be: who may import whom, and where backward and step are called."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = ("trainers", "evals", "pipelines")
LIBRARY = sorted((ROOT / "stepdistill").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute module names a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_library_imports_no_leaf(path: Path) -> None:
    """Nothing in stepdistill/ imports trainers, evals or pipelines, by either of their names."""
    leaves = {*LEAVES, *(f"stepdistill.{leaf}" for leaf in LEAVES)}
    for name in imported(path):
        assert not any(name == leaf or name.startswith(leaf + ".") for leaf in leaves), name


def test_pipelines_import_only_torch_and_diffusers() -> None:
    """A pipeline file travels with weights, so it must run where stepdistill is not installed."""
    for path in (ROOT / "pipelines").glob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= {"torch", "diffusers", "numpy", *sys.stdlib_module_names}


def test_the_mathematics_does_not_know_the_loop() -> None:
    """schedules -> denoisers, losses -> methods -> fit: no arrow points back."""
    order = [
        "schedules",
        "denoisers",
        "losses",
        "solvers",
        "plans",
        "discriminator",
        "methods/dmd2",
    ]
    for name in (*order, "methods/ect", "divergences", "draws", "conditioning"):
        names = imported(ROOT / "stepdistill" / f"{name}.py")
        for upper in ("fit", "checkpoint", "export", "distil", "report", "cli"):
            assert f"stepdistill.{upper}" not in names, (name, upper)


@pytest.mark.parametrize(
    "path",
    [*LIBRARY, *(p for leaf in LEAVES for p in (ROOT / leaf).glob("*.py"))],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_only_fit_steps(path: Path) -> None:
    """``.backward()`` and ``optimizer.step()`` are called in fit.py and in its benchmark alone;
    a diffusers scheduler's ``step`` is a solver's."""
    if path.name in ("fit.py", "overhead.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_scheduler = ast.unparse(node.func) == "scheduler.step"
            forbidden = node.func.attr in ("backward", "step") and not of_scheduler
            assert not forbidden, f"{path}:{node.lineno}"


def test_no_leaf_shadows_a_library() -> None:
    """evals/clip.py would shadow ``clip`` when run as a script from its folder."""
    known = {"clip", "torch", "diffusers", "datasets", "evaluate", "lpips", "wandb", "peft"}
    for leaf in LEAVES:
        assert not known & {path.stem for path in (ROOT / leaf).glob("*.py")}


def test_top_level_is_as_decided() -> None:
    """The seven names the user fixed are there."""
    for name in ("pyproject.toml", "stepdistill", *LEAVES, "tests", "README.md"):
        assert (ROOT / name).exists(), name
