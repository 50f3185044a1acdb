"""A twin of a method on the meta device: the same modules, sharing as they share, without data."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def on_meta(thing: T) -> T:
    """A deep copy of ``thing`` whose tensors are on the meta device; it takes no memory."""
    with _Twins():
        return copy.deepcopy(thing)


class _Twins(TorchFunctionMode):
    """Copies of tensors are made on meta; those of one storage are of one storage again."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._twin(tensor).requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        if getattr(func, "__name__", "") == "clone":  # what a Parameter's copy is made of
            return self._twin(args[0])
        return func(*args, **(kwargs or {}))

    def _twin(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            own = tensor.untyped_storage()
            if own._cdata not in self._storages:
                empty = torch.empty(own.nbytes(), dtype=torch.uint8, device="meta")
                self._storages[own._cdata] = empty.untyped_storage()
            twin = torch.empty(0, dtype=tensor.dtype, device="meta")
            shape, strides = tensor.shape, tensor.stride()
            storage = self._storages[own._cdata]
            return twin.set_(storage, tensor.storage_offset(), shape, strides)
