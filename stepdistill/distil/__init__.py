"""What every training program does: options -> teacher, method and data -> fit -> a student."""

from .build import build_method as build_method
from .build import build_without_data as build_without_data
from .build import read_teacher as read_teacher
from .data import load_data as load_data
from .options import DistilOptions as DistilOptions
from .options import read_settings as read_settings
from .run import distil as distil
from .stages import run_stages as run_stages
from .students import export_checkpoint as export_checkpoint
from .students import exportable as exportable
