"""The tiny stock pipelines: they run, listen to their prompt, and come back whole from a folder."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import CALLS, PIPELINES, image, some_slow, video
from tiny_pipelines.tokenizers import clip_tokenizer, gemma_tokenizer, qwen_tokenizer, t5_tokenizer
from torch import Tensor, nn

PROMPTS = ("a red cat", "the sea at night")
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
CLASSES = (3, 7)  # in the place of the prompts, for DiT
ALONE = """
import sys, torch
from diffusers import DiffusionPipeline
for folder in sys.argv[1:]:
    loaded = DiffusionPipeline.from_pretrained(folder)
    call = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    torch.save(loaded(prompt="a red cat", generator=generator, **call)[0], folder + "/latents.pt")
assert not any(name.split(".")[0] in ("stepdistill", "tiny_pipelines") for name in sys.modules)
"""


def _run(pipeline: DiffusionPipeline, name: str, which: int = 0, **overrides: object) -> Tensor:
    """Two steps from seed 0; latents where the class gives them out, else pixels."""
    condition = {"dit": {"class_labels": [CLASSES[which]]}, "ddpm": {}}
    call = {
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "pt" if name in condition else "latent",
        **condition.get(name, {"prompt": PROMPTS[which]}),
        **CALLS[name],
        **overrides,
    }
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**call)[0]


def assert_same(
    loaded: DiffusionPipeline, pipeline: DiffusionPipeline, name: str, **overrides: object
) -> None:
    """All weights are the very same, and the latents but for rounding.

    A mapped file's weights are aligned otherwise, and sums over them may take another order.
    """
    for part, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            ours, theirs = module.state_dict(), getattr(loaded, part).state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    latents = _run(pipeline, name, **overrides)
    assert latents.isfinite().all()
    torch.testing.assert_close(_run(loaded, name, **overrides), latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", some_slow(PIPELINES))
def test_a_saved_pipeline_comes_back_the_same(name: str, tmp_path: Path) -> None:
    """Saved and loaded."""
    pipeline = PIPELINES[name]()
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is type(pipeline)
    assert_same(loaded, pipeline, name)


@pytest.mark.parametrize("name", some_slow(name for name in PIPELINES if name != "ddpm"))
def test_the_prompt_is_heard(name: str) -> None:
    """Two prompts, one seed: the latents differ by more than a hundredth of their norm."""
    pipeline = PIPELINES[name]()
    one, other = _run(pipeline, name, 0), _run(pipeline, name, 1)
    assert (one - other).norm() > 0.01 * one.norm()


@pytest.mark.parametrize("name", some_slow(PIPELINES))
def test_pixels_come_out(name: str) -> None:
    """The decoder runs too, and its pixels have the size that was asked for."""
    pixels = _run(PIPELINES[name](), name, output_type="pt")
    size = CALLS[name].get("height", 8 if name == "ddpm" else 16)
    assert pixels.shape[-2:] == (size, size)
    assert pixels.isfinite().all()
    assert pixels.std() > 0


@pytest.mark.parametrize("name", some_slow(PIPELINES))
def test_no_weight_is_zero_and_the_seed_decides_them(name: str) -> None:
    """Every parameter is drawn: none is zero, and a second build has the same."""
    one, again = PIPELINES[name](), PIPELINES[name]()
    for part, network in one.components.items():
        if isinstance(network, nn.Module):
            twin = dict(again.components[part].named_parameters())
            for key, weight in network.named_parameters():
                assert bool(weight.any()), f"{part}.{key}"
                assert torch.equal(weight, twin[key]), f"{part}.{key}"


def test_another_seed_gives_other_weights() -> None:
    one, other = image.ddpm(seed=0).unet, image.ddpm(seed=1).unet
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "build", "call", "load"),
    [
        ("pixart-alpha", functools.partial(image.pixart_alpha, additional_conditions=True), {}, {}),
        ("dit", functools.partial(image.dit, classes=10), {"guidance_scale": 1.0}, {}),
        ("sd3", functools.partial(image.sd3, t5=False), {}, NO_T5),
        ("flux", functools.partial(image.flux, guidance_embeds=False), {}, {}),
        ("sana", functools.partial(image.sana, euler=True), {}, {}),
        ("wan-t2v", functools.partial(video.wan_t2v, euler=True), {}, {}),
        ("wan22-t2v", functools.partial(video.wan22_t2v, euler=True), {}, {}),
        ("wan-i2v", functools.partial(video.wan_i2v, euler=True), {}, {}),
        ("wan22-i2v", functools.partial(video.wan22_i2v, euler=True), {}, {}),
        ("cogvideox", functools.partial(video.cogvideox, rotary=True), {}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_variants_run_and_come_back(
    name: str,
    build: Callable[[], DiffusionPipeline],
    call: dict[str, object],
    load: dict[str, object],
    tmp_path: Path,
) -> None:
    pipeline = build()
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, **load)
    assert_same(loaded, pipeline, name, **call)


def test_tokenizers_tell_prompts_apart() -> None:
    for tokenizer in (clip_tokenizer(), t5_tokenizer(), gemma_tokenizer(), qwen_tokenizer()):
        prompts = (*PROMPTS, "a red cat.", "a red act", "the sea, at night", "")
        assert len({tuple(tokenizer(prompt).input_ids) for prompt in prompts}) == len(prompts)


def test_qwen_image_drops_its_preamble_and_no_more() -> None:
    """What the pipeline cuts off the front of its template is the text before the prompt."""
    pipeline = image.qwen_image()
    before = pipeline.prompt_template_encode.split("{}")[0]
    assert len(pipeline.tokenizer(before).input_ids) == pipeline.prompt_template_encode_start_idx


@pytest.mark.slow
def test_a_process_without_this_code_loads_them(tmp_path: Path) -> None:
    """CLIP, T5 and Qwen: a fresh process elsewhere loads the folders and draws the same.

    Weights that lie in a mapped file are aligned otherwise, which may change the last bits.
    """
    names = ("sd15", "sd3", "z-image")
    for name in names:
        PIPELINES[name]().save_pretrained(tmp_path / name)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    folders = [str(tmp_path / name) for name in names]
    command = [sys.executable, "-c", ALONE, *folders]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    for name in names:
        latents = torch.load(tmp_path / name / "latents.pt")
        torch.testing.assert_close(latents, _run(PIPELINES[name](), name), rtol=1e-4, atol=1e-5)
