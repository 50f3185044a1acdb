"""What a training run takes of a device's memory, role by role and at the peak of each update.

Weights are counted once for all that share them: frozen views, and LoRA roles over one base.
Gradients and activations come and go, and are found by rehearsing the update (``rehearsal.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .conditioning import Conditioning
from .fit_config import FitConfig
from .methods.base import Method
from .rehearsal import rehearse

GIB, MIB = 2**30, 2**20
# of 8-bit AdamW (bitsandbytes): weights that share a scale, and how few of them stay in float32
BLOCK, FEW = 256, 4096


@dataclass(frozen=True)
class Part:
    """One line of the table: counts of parameters, and bytes.

    ``place`` is "device" or "cpu"; what is on the CPU takes none of the device's memory.
    """

    name: str
    parameters: int
    trainable: int = 0
    weights: int = 0
    gradients: int = 0
    moments: int = 0
    place: str = "device"

    @property
    def resident(self) -> int:
        """Bytes that stay from one update to the next."""
        return self.weights + self.moments


@dataclass(frozen=True)
class Footprint:
    """All parts, and for each update the most bytes of gradients and activations at once.

    ``updates`` is empty where the update could not be rehearsed, and ``problem`` says why.
    """

    parts: tuple[Part, ...]
    updates: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def resident(self) -> int:
        """Bytes on the device between updates."""
        return sum(part.resident for part in self.parts if part.place == "device")

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes on the device at most, by update."""
        return {purpose: self.resident + size for purpose, size in self.updates.items()}

    @property
    def peak(self) -> int:
        """The largest of them; what stays resident if none is known."""
        return max(self.peaks.values(), default=self.resident)

    def record(self) -> dict[str, Any]:
        """JSON form, in bytes."""
        parts = [{**vars(part), "resident": part.resident} for part in self.parts]
        updates = {k: {"moving": v, "peak": self.peaks[k]} for k, v in self.updates.items()}
        known = {"updates": updates, "resident": self.resident, "peak": self.peak}
        return {"parts": parts, **known, **({"problem": self.problem} if self.problem else {})}

    def table(self) -> str:
        """The parts, and the peaks, in GiB (or MiB where all are small)."""
        unit, name = (GIB, "GiB") if self.peak >= GIB else (MIB, "MiB")
        lines = [
            f"{name:16}{'parameters':>12}{'weights':>10}{'gradients':>11}{'moments':>9}  where"
        ]
        for part in self.parts:
            sizes = (part.weights, part.gradients, part.moments)
            weights, gradients, moments = (f"{size / unit:.2f}" for size in sizes)
            count = f"{part.parameters / 1e6:.1f} M"
            line = f"{part.name:16}{count:>12}{weights:>10}{gradients:>11}{moments:>9}"
            lines.append(f"{line}  {part.place}")
        lines.append(f"\nbetween updates {self.resident / unit:.2f} {name} on the device")
        for purpose, size in self.updates.items():
            lines.append(
                f"{purpose} update: {self.peaks[purpose] / unit:.2f} {name} at the peak, "
                f"{size / unit:.2f} of it gradients and activations"
            )
        if self.problem:
            lines.append(f"the updates could not be rehearsed: {self.problem}")
        return "\n".join(lines)


def parts_of(
    method: Method, teacher: nn.Module, config: FitConfig, ranks: int = 1
) -> tuple[Part, ...]:
    """Teacher, roles, the generator's average, and what losses look through (a CLIP, a decoder).

    ``ranks`` > 1 adds DDP's buckets, which hold the gradients once more.
    """
    seen: set[int] = set()
    weights = _distinct(teacher, seen)
    parts = [Part("teacher", _count(weights), weights=_bytes(weights))]
    networks = nn.ModuleList(v for v in vars(method).values() if isinstance(v, nn.Module))
    if weights := _distinct(networks, seen):
        parts.append(Part("of the losses", _count(weights), weights=_bytes(weights)))
    for name, role in method.roles.items():
        weights, trained = _distinct(role.module, seen), list(role.trainable().values())
        gradients = _bytes(trained)
        moments = sum(_eight_bit(p) for p in trained) if config.adam_8bit else 2 * gradients
        if ranks > 1:
            moments += gradients
        own = (_count(trained), _bytes(weights), gradients, moments)
        parts.append(Part(name, _count(weights), *own))
    path = getattr(method, "path", None)
    if path is not None:
        copied = path.copied()
        parts.append(Part("way back", _count(copied), weights=_bytes(copied)))
    average = list(method.roles["generator"].trainable().values())
    parts.append(Part("average (EMA)", _count(average), weights=_bytes(average)))
    return tuple(parts)


def encoder_parts(encoders: Mapping[str, nn.Module], place: str) -> tuple[Part, ...]:
    """Text encoders and autoencoder, on "cpu" or "device"."""
    found = []
    for name, module in encoders.items():
        weights = _distinct(module, set())
        found.append(Part(name, _count(weights), weights=_bytes(weights), place=place))
    return tuple(found)


def footprint(
    method: Method,
    parts: tuple[Part, ...],
    cond: Conditioning,
    sample_shape: tuple[int, ...],
    config: FitConfig,
    device: str,
) -> Footprint:
    """``parts`` with the peak of each update on one micro-batch of ``cond``; see ``rehearse``."""
    updates = {}
    path = getattr(method, "path", None)
    try:
        if path is not None:
            path.at(1)  # what it holds is one of the parts
        for purpose in method.updates:
            updates[purpose] = rehearse(
                *(method, purpose, cond, sample_shape, device),
                bf16=config.bf16,
                micro_batches=config.accumulate,
            )
    except Exception as error:  # whatever a network does that needs data
        first = (str(error) or type(error).__name__).splitlines()[0]
        return Footprint(parts, problem=first)
    return Footprint(parts, updates)


def micro_batch(config: FitConfig, ranks: int = 1) -> int:
    """Samples that are on a device at once."""
    return max(1, config.batch_size // (config.accumulate * ranks))


def _distinct(module: nn.Module, seen: set[int]) -> list[Tensor]:
    """Parameters and buffers of ``module`` whose storage is not in ``seen``, which they join."""
    found = []
    for tensor in (*module.parameters(), *module.buffers()):
        key = _stored(tensor)[0].untyped_storage()._cdata
        if key not in seen:
            seen.add(key)
            found.append(tensor)
    return found


def _eight_bit(weight: Tensor) -> int:
    """Bytes of two 8-bit moments and their float32 scales."""
    count = weight.numel()
    return 8 * count if count < FEW else 2 * (count + 4 * -(-count // BLOCK))


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    stored = (part for tensor in tensors for part in _stored(tensor))
    return sum(part.numel() * part.element_size() for part in stored)


def _stored(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor's values: itself, or the parts of a quantised one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]
