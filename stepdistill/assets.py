"""Weights, prompts and references that must be found: named, in the hub's cache, or on the hub.

An asset is looked for where the option says, then where its environment variable says, then, if it
lies on the hub, in the hub client's own cache, from where it comes without a network. Only then is
it downloaded, into that cache, and said so. What was named and is not there is an error, never a
reason to look further. A file that bears the published name must be the published file, byte for
byte, where its SHA-256 is known; a file of another name is somebody's own, and is taken as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError, first_sentence
from .metrics.features import digest


@dataclass(frozen=True)
class Asset:
    """Something to be found. ``name`` says what it is, in words that follow "found no".

    ``source`` is where a person fetches ``file``: an address, or a hub repository OWNER/NAME in
    which ``file`` lies (of a whole repository, the file that holds the weights).
    """

    name: str
    file: str
    variable: str  # of the environment
    source: str
    sha256: str | None = None  # of ``file``; None where none is published
    option: str = "--weights"  # as it is typed

    @property
    def on_hub(self) -> bool:
        """Whether the hub client can fetch it."""
        return "://" not in self.source

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"https://huggingface.co/{self.source}" if self.on_hub else self.source


def find(asset: Asset, given: str | Path | None = None) -> Path:
    """The file: ``given`` (the option), else what the environment names, else from the hub.

    UserError if it is not there, or bears the published name and is another file.
    """
    file = locate(asset, given) or _fetched(asset, _file_of)
    check(asset, file)
    return file


def find_repo(asset: Asset, given: str | Path | None = None) -> str:
    """The folder with a model as ``save_pretrained`` writes it, for ``from_pretrained``.

    ``given``, and the environment variable, name a folder or another hub repository. UserError if
    it is not there; the published hash is asked of the published repository's file alone.
    """
    named = _named(asset, given)
    if named is None:
        folder = _fetched(asset, _folder_of)
        check(asset, folder / asset.file)
        return str(folder)
    if Path(named).is_dir():
        return named
    if Path(named).exists() or named.count("/") != 1 or named.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {named}: {_mend(asset)}")
    other = Asset(asset.name, asset.file, asset.variable, named, option=asset.option)
    return str(_fetched(other, _folder_of))


def locate(
    asset: Asset, given: str | Path | None = None, places: Sequence[Path] = ()
) -> Path | None:
    """The file that the option or the environment names, else the first of ``places`` that is
    there; not checked. None if a hub asset is not named; UserError if another is nowhere."""
    named = _named(asset, given)
    if named is not None:
        if not Path(named).is_file():
            raise UserError(f"there is no file {named}: {_mend(asset, places)}")
        return Path(named)
    for place in places:
        if place.is_file():
            return place
    if asset.on_hub:
        return None
    raise UserError(f"found no {asset.name}: {_mend(asset, places)}")


def check(asset: Asset, file: Path) -> None:
    """UserError for a file of the published name that has not the published hash."""
    if asset.sha256 is None or file.name != Path(asset.file).name:
        return
    if (found := digest(file)) != asset.sha256:
        raise UserError(
            f"{file} is truncated, or not {asset.file} (its sha256 is {found[:12]}..., not "
            f"{asset.sha256[:12]}...): fetch it again from {asset.address}, or give it a name of "
            "its own if it is meant to be another"
        )


def _named(asset: Asset, given: str | Path | None) -> str | None:
    return str(given) if given else os.environ.get(asset.variable) or None


def _mend(asset: Asset, places: Sequence[Path] = ()) -> str:
    put = "".join(f", or put it at {place}" for place in places)
    bare = "" if asset.on_hub else "; nothing is downloaded by itself"
    return (
        f"fetch {asset.file} ({asset.address}) and name it with {asset.option}, or in the "
        f"environment variable {asset.variable}{put}{bare}"
    )


def _file_of(asset: Asset, local: bool) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(asset.source, asset.file, local_files_only=local))


def _folder_of(asset: Asset, local: bool) -> Path:
    """The weights, and what is beside them as text: configurations, vocabularies."""
    from huggingface_hub import snapshot_download

    wanted = [asset.file, "*.json", "*.txt", "*.model"]
    folder = snapshot_download(asset.source, allow_patterns=wanted, local_files_only=local)
    if not (Path(folder) / asset.file).is_file():
        raise FileNotFoundError(f"{folder} has no {asset.file}")
    return Path(folder)


def _fetched(asset: Asset, get: Callable[[Asset, bool], Path]) -> Path:
    """From the hub's cache, else downloaded into it, which is said on stderr."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    try:
        with suppress(FileNotFoundError):  # also what the client raises of an empty cache
            return get(asset, True)
        size = get_hf_file_metadata(hf_hub_url(asset.source, asset.file)).size or 0
        print(
            f"downloading {asset.file} of {asset.source} ({size / 1e6:,.0f} MB) into the hub's "
            f"cache, {constants.HF_HUB_CACHE}",
            file=sys.stderr,
        )
        return get(asset, False)
    except Exception as error:  # no network, no such repository, no access, a full disk
        raise UserError(
            f"found no {asset.name}, and {asset.source} did not come from the hub "
            f"({first_sentence(error)}): {_mend(asset)}"
        ) from error
