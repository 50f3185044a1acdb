"""Roles: a denoiser (or a head) that trains, fully or by LoRA, and views of it that do not.

Freezing is a property of a *view*: a second module skeleton over the same storage. Every call says
what flows:

    with torch.no_grad(): role.frozen(...)   # nothing
    role.frozen(...)                         # into the inputs only
    role(...)                                # into the weights

A view follows optimizer steps and loads, survives gradient checkpointing (no flag changes between
forward and recomputation) and is always in eval mode. Switching ``requires_grad`` or LoRA adapters
instead is silently wrong, because both end before ``backward`` runs.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.nn import Parameter

from .denoisers import Denoiser
from .errors import UserError

if TYPE_CHECKING:  # both take seconds to import, and most roles need neither
    from accelerate import Accelerator
    from peft import LoraConfig

M = TypeVar("M", bound=nn.Module)


def share(module: M, *, frozen: bool) -> M:
    """A second skeleton of ``module`` over the same storage.

    Frozen: parameters are detached views, in eval mode. Otherwise the very same Parameters.
    """
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = Parameter(p.detach(), requires_grad=False) if frozen else p
    for b in module.buffers():
        memo[id(b)] = b
    skeleton = copy.deepcopy(module, memo)
    return skeleton.eval() if frozen else skeleton


class Role:
    """A module with weights that learn. Called, it runs through its DDP wrapper once prepared."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module: Any = module  # a Denoiser, or a discriminator head
        self._call: nn.Module = module
        self._view: nn.Module | None = None
        self._trainable: dict[str, Parameter] | None = None
        self._changes: list[Callable[[nn.Module], None]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Role:
        """A copy of its own, not prepared nor changed."""
        return Role(self.name, copy.deepcopy(self.module, memo))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward with weights that learn."""
        return self._call(*args, **kwargs)

    @property
    def frozen(self) -> nn.Module:
        """The view whose weights do not learn, in eval mode; made on first use."""
        if self._view is None:
            self._view = share(self.module, frozen=True)
            for change in self._changes:
                change(self._view)
        return self._view

    def standing(self) -> nn.Module:
        """A frozen copy of the module as it is now, which does not follow: in eval mode.

        What learns is copied, and the weights that do not are shared: of a LoRA its base.
        """
        memo: dict[int, Any] = {id(p): p for p in self.module.parameters() if not p.requires_grad}
        memo |= {id(b): b for b in self.module.buffers()}
        copied: nn.Module = copy.deepcopy(self.module, memo).requires_grad_(False).eval()
        for change in self._changes:
            change(copied)
        return copied

    def drop_view(self) -> None:
        """Forget the frozen view, after a change to the module that it should follow."""
        self._view = None

    def change(self, change: Callable[[nn.Module], None]) -> None:
        """Change the module in a way that copies lose, and each frozen view when it is made."""
        change(self.module)
        self._changes.append(change)
        self.drop_view()

    def trainable(self) -> dict[str, Parameter]:
        """The parameters that learn, by name."""
        if self._trainable is None:
            named = self.module.named_parameters()
            self._trainable = {name: p for name, p in named if p.requires_grad}
        return self._trainable

    def prepare(self, accelerator: Accelerator) -> None:
        """Move to the accelerator's device and wrap for its ranks; drops the view and the cache.

        Preparing may reallocate parameters (``.to``), after which an old view shares nothing.
        """
        self._view = self._trainable = None
        self._call = accelerator.prepare_model(self.module)

    def check_sharing(self) -> None:
        """Raise RuntimeError if the frozen view no longer shares this role's storage."""
        own = {p.data_ptr() for p in (*self.module.parameters(), *self.module.buffers())}
        seen = (*self.frozen.parameters(), *self.frozen.buffers())
        if any(p.data_ptr() not in own for p in seen):
            raise RuntimeError(f"the frozen view of {self.name} lost its weights: it was moved")

    @contextlib.contextmanager
    def unsynchronised(self, accelerator: Accelerator, active: bool) -> Iterator[None]:
        """No gradient all-reduce inside (all but the last micro-batch) while ``active``."""
        with accelerator.no_sync(self._call) if active else contextlib.nullcontext():
            yield


def full(name: str, denoiser: nn.Module) -> Role:
    """A role with its own copy of all weights, in float32; those that nothing reads do not learn.

    A weight in bf16 has 8 bits: a step below 0.2 % of it is lost in rounding.
    """
    module = copy.deepcopy(denoiser).requires_grad_(True).train()
    in_float32(module.parameters())
    if isinstance(module, Denoiser):
        for parameter_name, parameter in module.backbone.network.named_parameters():
            if parameter_name.startswith(module.backbone.unread):
                parameter.requires_grad_(False)
    return Role(name, module)


def lora(name: str, denoiser: Denoiser, config: LoraConfig) -> Role:
    """A role that learns LoRA adapters over the very weights of ``denoiser``.

    Several such roles and the teacher keep one base in memory; each is a skeleton of its own with
    an adapter called "default", in float32 over a base in half precision too: small steps would be
    lost in bf16. Raises UserError if ``config.target_modules`` match nothing.
    """
    from peft import inject_adapter_in_model

    module = share(denoiser, frozen=False).train()
    module.requires_grad_(False)
    try:
        inject_adapter_in_model(config, module.backbone.network, "default")
    except ValueError as error:
        raise UserError(f"LoRA for the {name} cannot be added: {error}") from error
    in_float32(p for p in module.parameters() if p.requires_grad)  # peft takes the base's dtype
    return Role(name, module)


def in_float32(parameters: Iterable[Parameter]) -> None:
    """Those in half precision, in place."""
    for parameter in parameters:
        if parameter.element_size() < 4:
            parameter.data = parameter.data.float()


@dataclass(frozen=True)
class LoRAOptions:
    """LoRA instead of full weights, for generator and critic over one base network."""

    rank: int = 0  # 0: train all weights
    alpha: float = 8.0  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = ()  # layer names; default: those of the teacher's family

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"rank must be at least 0 (0 trains all weights), got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha must be above 0 (the update's scale), got {self.alpha}")


FULL = LoRAOptions()


def trainable_role(
    name: str, denoiser: Denoiser, options: LoRAOptions, family_targets: list[str]
) -> Role:
    """``denoiser`` as a role: a full copy, or adapters over its own weights if a rank is set.

    UserError for targets of ``options`` that name no layer of the network.
    """
    if options.rank == 0:
        return full(name, denoiser)
    from peft import LoraConfig

    layers = [f".{layer}" for layer, _ in denoiser.backbone.network.named_modules()]
    unknown = [t for t in options.targets if not any(x.endswith(f".{t}") for x in layers)]
    if unknown:
        raise UserError(f"LoRA targets that no layer of the {name} is called: {unknown}")
    targets = list(options.targets) or family_targets
    unread = [x[1:] for x in layers if x[1:].startswith(denoiser.backbone.unread)]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=targets,
        exclude_modules=unread or None,
    )
    return lora(name, denoiser, config)


def has_adapters(role: Role) -> bool:
    """Whether the role learns LoRA adapters."""
    from peft.tuners.lora import LoraLayer

    return any(isinstance(layer, LoraLayer) for layer in role.module.modules())


def merged(role: Role) -> nn.Module:
    """A true copy of the role's module with its adapters fused; the shared base stays as it is."""
    from peft.tuners.lora import LoraLayer

    module: nn.Module = copy.deepcopy(role.module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer.get_base_layer())
    return module
