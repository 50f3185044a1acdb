"""Precomputed samples as a training takes them: in place of a teacher's encoders.

Beside its samples a folder holds ``null.NAME``, the null conditioning, and ``shown.NAME``, the
conditionings of the examples that grids and shapes need. Its ``made_from`` says of which teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .conditioning import Conditioning
from .data.sharded_data import ShardedData, load_shards
from .data.shards import is_precomputed
from .errors import UserError
from .files import differences
from .teachers import Stored, Teacher

SHOWN = 4  # examples whose conditionings are kept
NULL, EXAMPLE = "null.", "shown."
# of a network's config: what its conditioning is as wide as
WIDTHS = (
    *("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "caption_channels"),
    *("text_dim", "text_embed_dim", "cap_feat_dim", "image_dim"),
    *("num_embeds_ada_norm", "num_class_embeds"),
)


def described(teacher: Teacher) -> dict[str, Any]:
    """What the samples depend on, for ``made_from``."""
    return {"name": teacher.name, "dtype": teacher.options.dtype, **_fits(teacher)}


def beside(teacher: Teacher) -> dict[str, Tensor]:
    """The null conditioning and those of the examples, by name."""
    if not teacher.is_told_by_text:  # classes are encoded without an encoder
        return {}
    named = {EXAMPLE + name: value for name, value in teacher.shown(SHOWN).items()}
    if teacher.null_cond is not None:
        named |= {NULL + name: value for name, value in teacher.null_cond.items()}
    return {name: value.cpu().contiguous() for name, value in named.items()}


def find_precomputed(source: str) -> ShardedData | None:
    """The precomputed samples in the folder ``source``; None if it holds something else.

    UserError if they are not complete.
    """
    folder = Path(source)
    return load_shards(folder) if source and is_precomputed(folder) else None


def stored(data: ShardedData, decodes: bool) -> Stored:
    """What a teacher needs of ``data`` in place of its encoders; see :class:`Stored`."""
    found = data.beside()

    def named(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    null, shown = named(NULL), named(EXAMPLE)
    shapes = [shard.shapes["x0"] for shard in data.shards if "x0" in shard.shapes]
    return Stored(
        Conditioning(null) if null else None,
        Conditioning(shown) if shown else Conditioning.empty(SHOWN),
        decodes,
        tuple(map(min, zip(*shapes, strict=True))) if shapes else None,
    )


def check_teacher(data: ShardedData, teacher: Teacher) -> None:
    """UserError unless ``data`` was made with a teacher that is told the same, at the same size.

    Its weights may be others, and the dtype of its encoders too.
    """
    there = data.made_from.get("teacher", {})
    then, now = {key: there.get(key) for key in _fits(teacher)}, _fits(teacher)
    if then != now:
        raise UserError(
            f"{data.folder} was precomputed with {there.get('name')}, which does not fit "
            f"{teacher.name} ({differences(then, now)}): precompute it with this teacher, or give "
            "the same --load options"
        )


def _fits(teacher: Teacher) -> dict[str, Any]:
    """What the teachers of a precomputation and of a training must share."""
    config = getattr(teacher.denoiser.backbone.network, "config", {})
    return {
        "family": teacher.family.card.name,
        "sample_shape": list(teacher.sample_shape),
        "max_tokens": teacher.options.max_tokens,
        "widths": {name: config[name] for name in WIDTHS if config.get(name) is not None},
    }
