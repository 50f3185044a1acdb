"""torch.compile of the blocks that repeat in a network: one kind of block is compiled once.

Modules are compiled in place: weights, their names, and what is saved of them stay as they are.
"""

from __future__ import annotations

import os
import shutil
from functools import partial

from torch import nn

from .denoisers import Denoiser
from .errors import UserError
from .methods.base import Method
from .savings import diffusers_networks


def compile_repeated(method: Method, teacher: Denoiser, backend: str = "inductor") -> None:
    """Compile the repeated blocks of the teacher and of each role that is such a network.

    ``backend`` is torch.compile's. Their first calls take long. On the meta device nothing is
    done. UserError for a network that names no repeated blocks, and where there is no compiler.
    """
    if any(parameter.is_meta for parameter in teacher.parameters()):
        return
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")):
        raise UserError("compile_blocks needs a C++ compiler, and there is no g++ or clang++ here")
    change = partial(compile_blocks, backend=backend)
    change(teacher)
    for role in method.roles.values():
        if isinstance(role.module, Denoiser):
            role.change(change)


def compile_blocks(denoiser: nn.Module, backend: str = "inductor") -> None:
    """Compile the repeated blocks of one denoiser. UserError if its network names none."""
    assert isinstance(denoiser, Denoiser)
    networks = diffusers_networks(denoiser)
    named = [network for network in networks if network._repeated_blocks]
    if not named:
        kind = type(networks[0]).__name__
        raise UserError(f"compile_blocks: {kind} names no blocks to compile, leave it out")
    for network in named:
        network.compile_repeated_blocks(backend=backend)
