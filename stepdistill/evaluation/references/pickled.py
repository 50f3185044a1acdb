"""Arrays out of a pickle, without running what is in it.

A pickle names functions to call, so one from elsewhere can do anything. Statistics are nothing but
dictionaries of arrays and numbers: with every name but numpy's own of an array refused, reading
them runs nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, is_zipfile

from ...errors import UserError, first_line

# what numpy writes of arrays and scalars, by its names before and since numpy 2
ARRAYS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


class Arrays(pickle.Unpickler):
    """Admits numpy's arrays and Python's own values."""

    def find_class(self, module: str, name: str) -> Any:
        """UnpicklingError for any other name."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may hold arrays alone")
        return super().find_class(module, name)


def load_arrays(file: Path) -> Any:
    """What a pickle, or torch.save's zip of one, holds. UserError for a damaged file, or one that
    holds more than arrays."""
    try:
        if not is_zipfile(file):
            with file.open("rb") as stream:
                return _read(stream)
        with ZipFile(file) as archive:
            member = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(member) as stream:
                return _read(stream)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(
            f"{file} holds no statistics, or is damaged: {first_line(error)}; save them as "
            "np.savez(FILE, mu=..., sigma=...)"
        ) from error


def _read(stream: IO[bytes]) -> Any:
    return Arrays(stream).load()
