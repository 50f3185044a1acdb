"""An update rehearsed on the meta device: every allocation in its order, no memory, no arithmetic.

The loss and its backward run as they will run, on tensors without data, and each storage is counted
from the operation that makes it to the moment nothing refers to it. What a real device would choose
by itself is chosen here: the attention kernel, and what autocast computes in.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .conditioning import Conditioning
from .draws import Draws
from .methods.base import Batch, Loss, Method

META = torch.device("meta")
FUSED_WIDTH = 256  # the widest attention head of the fused GPU kernels
# what autocast computes in half precision, on every device
NARROWED = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm),
)
# and what in float32, on a GPU alone
WIDENED = (
    *(F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.mse_loss),
    *(torch.exp, Tensor.exp, torch.pow, Tensor.pow, torch.rsqrt, Tensor.norm, torch.cumsum),
)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made inside: ``live`` now, ``peak`` at most.

    What was there before counts as nothing, and less than that once it is gone.
    A number read from a meta tensor is 1, and so is what is copied from one to another device:
    nothing that is counted may depend on it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        leaves = (kwargs.get("device") or META).type != "meta"
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and leaves:
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.ones(args[0].shape, dtype=dtype, device=kwargs["device"])
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor.untyped_storage(), is_new=False)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._meet(tensor.untyped_storage(), is_new=True)
        return out

    def _meet(self, storage: torch.UntypedStorage, is_new: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        if is_new:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Kernels(TorchFunctionMode):
    """On meta tensors, the attention kernel and the autocast of a ``device``: "cuda" or "cpu".

    Fused attention keeps its inputs, its output and a number a query; torch's plain one, which meta
    tensors would get, keeps the scores of all pairs.
    """

    def __init__(self, device: str, bf16: bool) -> None:
        super().__init__()
        self.device, self.bf16 = device, bf16

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.bf16 and func in NARROWED:
            args, kwargs = _cast((args, kwargs), torch.bfloat16)
        elif self.bf16 and self.device == "cuda" and func in WIDENED:
            args, kwargs = _cast((args, kwargs), torch.float32)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa and query.shape[-3] != key.shape[-3]:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        fits = query.ndim == 4 and query.shape[-1] == value.shape[-1] <= FUSED_WIDTH
        if not fits or dropout_p or not query.is_meta:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale
            )
        aten = torch.ops.aten
        if attn_mask is not None:
            shape = (*query.shape[:3], key.shape[2])
            attn_mask = attn_mask if attn_mask.is_floating_point() else attn_mask.to(query.dtype)
            attn_mask = attn_mask.expand(shape)
        if self.device == "cpu":
            out = aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
            )
        elif attn_mask is None and query.dtype != torch.float32:
            out = aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, is_causal, scale=scale
            )
        else:
            out = aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, query.requires_grad, 0.0, is_causal, scale=scale
            )
        found: Tensor = out[0]
        return found


class MetaDraws(Draws):
    """Draws of the right shapes, without numbers."""

    def __init__(self, purpose: str) -> None:
        super().__init__(0, 1, purpose, device=META)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """See :class:`Draws`."""
        return torch.empty(shape, dtype=dtype, device=META)

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """See :class:`Draws`."""
        return torch.empty(n, dtype=torch.float64, device=META)


@contextlib.contextmanager
def without_data(device: str = "cpu", bf16: bool = False) -> Iterator[LiveBytes]:
    """Inside, meta tensors behave as a ``device`` does, and what is made is counted.

    Masks are taken to mask nothing.
    """
    whole = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with whole, Kernels(device, bf16), LiveBytes() as counted:
        yield counted


def rehearse(
    method: Method,
    purpose: str,
    cond: Conditioning,
    sample_shape: tuple[int, ...],
    device: str,
    *,
    bf16: bool = False,
    micro_batches: int = 1,
) -> int:
    """The most bytes at once that an update of ``purpose`` takes beside weights and optimizers.

    ``method`` has all its weights on the meta device; ``cond`` is that of one micro-batch.
    """
    loss_of: Callable[[Batch], Loss] = getattr(method, f"{purpose}_loss")
    parameters = [p for role in method.roles.values() for p in role.trainable().values()]
    try:
        with without_data(device, bf16) as counted:
            x0 = torch.empty(cond.batch_size, *sample_shape, device=META)
            own = Conditioning({k: torch.empty_like(v) for k, v in cond.items()}, cond.batch_size)
            texts = ("a picture",) * cond.batch_size
            for _ in range(min(micro_batches, 2)):  # the second finds gradients, as all after it
                loss = loss_of(Batch(x0, own, MetaDraws(purpose), torch.empty_like(x0), texts))
                _backward(loss.value)
                del loss
        return counted.peak
    finally:
        for parameter in parameters:
            parameter.grad = None


def _backward(loss: Tensor) -> None:
    """``loss.backward()`` under function modes: those turn themselves off in torch's own, and what
    gradient checkpointing computes again would miss them.
    """
    ones = torch.ones_like(loss)
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``; float64 stays, as autocast leaves it."""

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype not in (
            *(torch.float32, torch.bfloat16, torch.float16),
        ):
            return leaf
        return leaf.to(dtype)

    return tree_map(cast, tree)
