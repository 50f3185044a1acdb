"""What a model is measured against: statistics made before, or images that are measured now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ...errors import UserError
from ...metrics.features import Features
from ...metrics.frechet import Statistics
from ..reading.archives import Pictures, content_sha256, open_pictures
from ..reading.measuring import AS_IT_SUITS, Measured, Reading, Want, measure_images
from .remembered import place, remember, remembered
from .stored import SUFFIXES, Stored, is_stored

Key = tuple[str, str, str]
ADMS = "inception-tf"  # the extractor of the statistics in ADM's reference batches


class Reference(Protocol):
    """Statistics, and features where there are any, of an extractor."""

    def statistics(self, features: Features) -> Statistics:
        """The Gaussian. UserError if it was made with another extractor."""

    def features(self, features: Features) -> Tensor | None:
        """The features (N, D); None where the file does not keep them. UserError as above."""

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Both, of several extractors at once; also when their number may not be compared."""

    def record(self) -> dict[str, Any]:
        """JSON form: path, count, and the hash of a file."""


@dataclass
class OfImages:
    """Images, measured when asked for and once for each extractor.

    Each call for another extractor reads them all: ``measure`` those that will be wanted first,
    all at once. Features lie in a temporary file until this object goes. In a ``folder``, if one
    is given, what was measured is kept; nothing else is cached.
    """

    pictures: Pictures
    how: Reading = AS_IT_SUITS
    folder: Path | None = None
    _known: dict[Key, Measured] = field(default_factory=dict, repr=False)

    def statistics(self, features: Features) -> Statistics:
        """The Gaussian of all images."""
        return self.measure([Want(features, keep=True)])[0].statistics

    def features(self, features: Features) -> Tensor | None:
        """Their features (N, D), in order."""
        return self.measure([Want(features, keep=True)])[0].features

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """What is not known yet is measured in one pass."""
        missing = [want for want in wants if not self._has(want)]
        if self.folder is not None:
            missing = [want for want in missing if not self._recalls(want)]
        if missing:
            every = range(len(self.pictures))
            found = measure_images(self.pictures, every, missing, self.how, self._content)
            for want, own in zip(missing, found, strict=True):
                self._known[_key(want.features)] = own
                if self.folder is not None:
                    remember(self._file(self.folder, want), own, want.features)
        return [self._known[_key(want.features)] for want in wants]

    def record(self) -> dict[str, Any]:
        """JSON form; the hash of what they hold too."""
        known = next(iter(self._known.values()), None)
        if known is not None:
            return known.record
        path, count = str(self.pictures.path), len(self.pictures)
        return {"kind": "images", "path": path, "num_samples": count, "sha256": self._content}

    def _recalls(self, want: Want) -> bool:
        """Whether an earlier process has left it."""
        assert self.folder is not None
        file = self._file(self.folder, want)
        if file.is_file():
            self._known[_key(want.features)] = remembered(file, want.features)
        return file.is_file()

    def _file(self, folder: Path, want: Want) -> Path:
        return place(folder, self._content, want, self.how)

    @cached_property
    def _content(self) -> str:
        return content_sha256(self.pictures)

    def _has(self, want: Want) -> bool:
        known = self._known.get(_key(want.features))
        return known is not None and (known.features is not None or not want.keep)


@dataclass
class OfBoth:
    """ADM's reference batches: statistics of all images on Inception as TensorFlow resizes, and
    some of the images, for what needs features or is seen through another extractor."""

    stored: Stored
    images: OfImages

    @property
    def of_digits(self) -> bool:
        """By the number of features."""
        return self.stored.of_digits

    def statistics(self, features: Features) -> Statistics:
        """The stored ones; of another extractor those of the images."""
        of_adm = features.name == ADMS
        return (self.stored if of_adm else self.images).statistics(features)

    def features(self, features: Features) -> Tensor | None:
        """Of the images."""
        return self.images.features(features)

    def measure(self, wants: Sequence[Want]) -> list[Measured]:
        """Images are read where features are wanted, or another extractor."""
        read = [want for want in wants if want.keep or want.features.name != ADMS]
        found = iter(self.images.measure(read) if read else [])
        return [self._measured(want, next(found) if want in read else None) for want in wants]

    def _measured(self, want: Want, images: Measured | None) -> Measured:
        if want.features.name != ADMS:
            assert images is not None
            return images
        stored = self.stored.measured(want.features)
        return stored if images is None else replace(stored, features=images.features)

    def record(self) -> dict[str, Any]:
        """The file's, with how many images it has."""
        return {**self.stored.record(), "num_samples": len(self.images.pictures)}


def load_reference(path: Path, how: Reading = AS_IT_SUITS, folder: Path | None = None) -> Reference:
    """The reference in a statistics file, or of the images in a folder, a zip, a tar or an .npz.

    What images are measured to be is kept in ``folder``, if one is given. UserError for anything
    else, and for what is damaged or empty.
    """
    pictures = open_pictures(path)
    if is_stored(path):
        stored = Stored.open(path)
        return stored if pictures is None else OfBoth(stored, OfImages(pictures, how, folder))
    if pictures is not None:
        return OfImages(pictures, how, folder)
    raise UserError(
        f"there is no reference at {path}: give a folder, .zip, .tar or .npz of images, or "
        f"statistics ({', '.join(sorted(SUFFIXES))})"
    )


def _key(features: Features) -> Key:
    return features.name, features.sha256, features.resize
