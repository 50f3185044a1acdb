"""The single files of ``stepdistill.pipelines``: they travel with weights that no stock class fits.

They are copied and loaded as files, as a user without stepdistill loads them, and never imported.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import sys
from pathlib import Path
from typing import Any

FLOW_SCHEDULER = ("few_step_flow", "FewStepFlowScheduler")  # file, class


def shipped_class(module: str, name: str) -> Any:
    """The class ``name`` of the file ``module``.py."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, _files() / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return getattr(sys.modules[module], name)


def needs_trust(folder: str | Path) -> bool:
    """Whether ``folder`` or one of its components holds Python."""
    return any(_python(Path(folder)))


def trust(folder: str | Path) -> dict[str, Any]:
    """The argument with which ``from_pretrained`` runs the Python in ``folder``: given only where
    each file is one of ours, byte for byte. Others' code is not run.
    """
    found = _python(Path(folder))
    ours = {path.name: path.read_bytes() for path in _files().glob("*.py")}
    known = all(ours.get(path.name) == path.read_bytes() for path in found)
    return {"trust_remote_code": True} if found and known else {}


def _python(folder: Path) -> list[Path]:
    return [*folder.glob("*.py"), *folder.glob("*/*.py")]


def _files() -> Path:
    return Path(str(importlib.resources.files("stepdistill.pipelines")))
