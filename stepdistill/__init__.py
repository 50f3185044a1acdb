"""Step distillation of diffusion and flow models, measured.

    teacher = load_teacher("digits")                 # or a diffusers folder, or a hub id
    method = DMD2.from_teacher(teacher, StepPlan(), DMD2Config())
    result = fit(method, data, FitConfig(), "runs/mine")

The names below are imported on first use, so that ``stepdistill --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import export as export
    from .fit import FitConfig as FitConfig
    from .fit import fit as fit
    from .methods import DMD2 as DMD2
    from .methods import ECT as ECT
    from .methods import DMD2Config as DMD2Config
    from .methods import ECTConfig as ECTConfig
    from .methods import Regression as Regression
    from .methods import RegressionConfig as RegressionConfig
    from .plans import StepPlan as StepPlan
    from .roles import LoRAOptions as LoRAOptions
    from .teachers import load_teacher as load_teacher

_HOMES = {
    "DMD2": "methods",
    "DMD2Config": "methods",
    "ECT": "methods",
    "ECTConfig": "methods",
    "FitConfig": "fit",
    "LoRAOptions": "roles",
    "Regression": "methods",
    "RegressionConfig": "methods",
    "StepPlan": "plans",
    "export": "export",
    "fit": "fit",
    "load_teacher": "teachers",
}

__all__ = ["DMD2", "ECT", "DMD2Config", "ECTConfig", "FitConfig", "LoRAOptions", "Regression"]
__all__ += ["RegressionConfig", "StepPlan", "export", "fit", "load_teacher"]


class _Package(ModuleType):
    """Keeps ``stepdistill.fit`` and ``.export`` the functions when their modules are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


sys.modules[__name__].__class__ = _Package
