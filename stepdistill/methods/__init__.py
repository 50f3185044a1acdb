"""One file a method. A method is a pair of losses; see ``base.py`` for the contract."""

from typing import Any

from .base import Batch as Batch
from .base import Loss as Loss
from .base import Method as Method
from .base import MethodCard as MethodCard
from .dmd2 import DMD2 as DMD2
from .dmd2 import DMD2Config as DMD2Config
from .ect import ECT as ECT
from .ect import ECTConfig as ECTConfig
from .regression import Regression as Regression
from .regression import RegressionConfig as RegressionConfig

METHODS: dict[str, Any] = {"dmd2": DMD2, "ect": ECT, "regression": Regression}
