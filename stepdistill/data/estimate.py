"""What a precomputation takes, said before it takes it: bytes on the disk, and time."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from ..errors import UserError


def spoken_bytes(count: float) -> str:
    """1536 -> 1.5 KiB."""
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def spoken_time(seconds: float) -> str:
    """7500 -> 2 h 5 min; below a minute, seconds."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def check_room(folder: Path, samples: int, sample_bytes: float) -> str:
    """What ``samples`` of so many bytes take, in words; UserError if the disk has less free."""
    needed, free = samples * sample_bytes, shutil.disk_usage(folder).free
    sentence = f"about {spoken_bytes(needed)} for {samples:,} samples"
    if needed > free:
        raise UserError(
            f"{folder} needs {sentence} ({spoken_bytes(sample_bytes)} each), and its disk has "
            f"{spoken_bytes(free)} free: free some, take fewer samples, or give another folder"
        )
    return sentence
