"""The bytes of published networks: LoRA roles over one base, counted on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from mid_networks import MIDS, dmd2

from stepdistill.backbones.sd import StableDiffusion, UNetBackbone
from stepdistill.backbones.sdxl import SDXLBackbone
from stepdistill.denoisers import Denoiser, PredictsEps
from stepdistill.fit import FitConfig
from stepdistill.footprint import Footprint, Part, footprint, micro_batch, parts_of
from stepdistill.roles import LoRAOptions, trainable_role
from stepdistill.schedules import VPSchedule

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# and of stabilityai/stable-diffusion-2-1
SD21: dict[str, Any] = {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
NETWORKS = {"sdxl": (SDXL, SDXLBackbone, 2.567), "sd21": (SD21, UNetBackbone, 0.866)}
TARGETS = {"all": list(StableDiffusion.lora_targets), "to_q, to_v": ["to_q", "to_v"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_lora_roles_cost_a_part_of_their_base(name: str) -> None:
    """Teacher, generator and critic hold at most 1.35 times the teacher's bytes at rank 64 on all
    of DMD2's published layers, and 1.10 on queries and values alone: no second base.
    """
    config, backbone, billions = NETWORKS[name]
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    schedule = VPSchedule.from_betas(torch.linspace(1e-4, 2e-2, 1000))
    teacher = Denoiser(backbone(network), schedule, PredictsEps()).requires_grad_(False)
    base = sum(2 * p.numel() for p in teacher.parameters())
    assert base / 2e9 == pytest.approx(billions, abs=1e-3)
    for targets, most in (("all", 1.35), ("to_q, to_v", 1.10)):
        with torch.device("meta"):
            roles = [
                trainable_role(role, teacher, LoRAOptions(rank=64), TARGETS[targets])
                for role in ("generator", "critic")
            ]
        modules = (teacher, *(role.module for role in roles), *(role.frozen for role in roles))
        tensors = {p.untyped_storage()._cdata: p for m in modules for p in m.parameters()}
        held = sum(p.numel() * p.element_size() for p in tensors.values())
        adapters = [p for role in roles for p in role.trainable().values()]
        assert {p.dtype for p in adapters} == {torch.float32}
        assert held == base + sum(4 * p.numel() for p in adapters)
        print(f"{name}, {targets}: {held / base:.3f} of {base / 2**30:.2f} GiB")
        assert held <= most * base


def parts(method: Any, **fit: Any) -> dict[str, Part]:
    return {p.name: p for p in parts_of(method, method.real, FitConfig(**fit), fit.pop("ranks", 1))}


def test_parts_of_full_and_lora_roles() -> None:
    """A full role has the teacher's weights once more; a LoRA role its adapters alone."""
    mid = MIDS["dit"]
    full = parts(dmd2(mid, "meta", rank=0, gan=True, checkpointed=False))
    lora = parts(dmd2(mid, "meta", rank=4, gan=True, checkpointed=False))
    assert list(full) == ["teacher", "critic", "generator", "head", "average (EMA)"]
    teacher, critic, adapters = full["teacher"], full["critic"], lora["critic"]
    assert lora["teacher"].weights == teacher.weights
    assert critic.weights == pytest.approx(teacher.weights, rel=1e-3)  # buffers are shared
    assert 0 < adapters.weights < 0.1 * teacher.weights
    assert adapters.weights == 4 * adapters.trainable == adapters.gradients
    assert critic.moments == 2 * critic.gradients == 8 * critic.trainable
    assert teacher.gradients == teacher.moments == 0
    assert full["average (EMA)"].weights == full["generator"].gradients
    assert lora["average (EMA)"].weights == lora["generator"].gradients


def test_eight_bit_moments_and_buckets_of_ranks() -> None:
    """Two bytes a weight and a little instead of eight; DDP holds the gradients once more."""
    method = dmd2(MIDS["dit"], "meta", rank=0, gan=False, checkpointed=False)
    config = FitConfig()
    plain = {p.name: p for p in parts_of(method, method.real, config)}["critic"]
    object.__setattr__(config, "adam_8bit", True)  # bitsandbytes may not be installed
    eight = {p.name: p for p in parts_of(method, method.real, config)}["critic"]
    assert 2 * eight.trainable < eight.moments < 2.2 * eight.trainable
    ranks = {p.name: p for p in parts_of(method, method.real, FitConfig(), 2)}["critic"]
    assert ranks.moments == plain.moments + plain.gradients


def test_what_is_on_the_cpu_takes_nothing_of_the_device() -> None:
    """Peaks are what stays on the device plus what moves, and the largest counts."""
    on = Part("critic", 10, weights=40, moments=80)
    off = Part("vae", 10, weights=1000, place="cpu")
    found = Footprint((on, off), {"critic": 7, "generator": 5})
    assert (found.resident, found.peak) == (120, 127)
    assert found.peaks == {"critic": 127, "generator": 125}
    assert found.record()["updates"]["generator"] == {"moving": 5, "peak": 125}
    assert Footprint((on, off)).peak == 120


def test_a_method_that_cannot_be_rehearsed_says_why() -> None:
    """The parts are counted all the same."""
    mid = MIDS["dit"]
    method = dmd2(mid, "meta", rank=4, gan=False, checkpointed=False)
    weights = parts_of(method, method.real, FitConfig())
    wrong = mid.conditioning("meta").replace(MIDS["unet"].conditioning("meta"))
    method.sample_shape = (3, 5, 7)
    found = footprint(method, weights, wrong, method.sample_shape, FitConfig(), "cpu")
    assert found.updates == {}
    assert found.problem
    assert "could not be rehearsed" in found.table()
    assert found.peak == found.resident > 0


def test_a_micro_batch_is_what_one_device_holds() -> None:
    """The global batch over ranks and accumulation."""
    assert micro_batch(FitConfig(batch_size=64, accumulate=4), 2) == 8
