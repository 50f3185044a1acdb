"""One file a method. A method is a pair of losses; see ``base.py`` for the contract."""

from typing import Any

from .base import Batch as Batch
from .base import Loss as Loss
from .base import Method as Method
from .base import MethodCard as MethodCard
from .disback import DisBack as DisBack
from .disback import PathOptions as PathOptions
from .dmd import DMD as DMD
from .dmd import DMDConfig as DMDConfig
from .dmd2 import DMD2 as DMD2
from .dmd2 import DMD2Config as DMD2Config
from .ect import ECT as ECT
from .ect import ECTConfig as ECTConfig
from .fdiv import FDistill as FDistill
from .fdiv import FDistillConfig as FDistillConfig
from .ladd import LADD as LADD
from .ladd import LADDConfig as LADDConfig
from .regression import Regression as Regression
from .regression import RegressionConfig as RegressionConfig
from .sfd import SFD as SFD
from .sfd import SFDConfig as SFDConfig
from .sid import SiD as SiD
from .sid import SiDConfig as SiDConfig
from .snoopi import SNOOPI as SNOOPI
from .snoopi import SNOOPIConfig as SNOOPIConfig
from .vsd import VSD as VSD
from .vsd import VSDConfig as VSDConfig

METHODS: dict[str, Any] = {
    "dmd2": DMD2,
    "disback": DisBack,
    "fdiv": FDistill,
    "dmd": DMD,
    "vsd": VSD,
    "snoopi": SNOOPI,
    "sid": SiD,
    "sfd": SFD,
    "ladd": LADD,
    "ect": ECT,
    "regression": Regression,
}
