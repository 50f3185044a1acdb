"""What a model card says of its student: the hub's name of the task, calls, guidance."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml
from diffusers import DiffusionPipeline
from tiny_pipelines import PIPELINES, image

from stepdistill import families
from stepdistill.model_cards import PIPELINE_TAGS, model_card
from stepdistill.plans import StepPlan
from stepdistill.teachers import load_teacher

# https://huggingface.co/docs/hub/models-tasks
TASKS = {
    *("text-to-image", "text-to-video", "image-to-video"),
    *("unconditional-image-generation", "image-to-image"),
}
SCHNELL = partial(image.flux, guidance_embeds=False)


@pytest.mark.parametrize(
    ("make", "tag", "guidance"),
    [
        (PIPELINES["ddpm"], "unconditional-image-generation", "without guidance"),
        (PIPELINES["dit"], "unconditional-image-generation", "without guidance"),
        (PIPELINES["sd15"], "text-to-image", "without guidance"),
        (PIPELINES["flux"], "text-to-image", "each told guidance_scale=3.5"),
        (SCHNELL, "text-to-image", "without guidance"),
    ],
    ids=["ddpm", "dit", "sd15", "flux", "flux-schnell"],
)
def test_the_task_and_the_guidance(
    make: partial[DiffusionPipeline], tag: str, guidance: str, tmp_path: Path
) -> None:
    """The header names the hub's task, and the first sentence what the network is told."""
    make().save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    text = model_card({}, teacher, StepPlan.uniform(2), "pipeline()")
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == tag
    [sentence] = [line for line in text.splitlines() if "network calls a sample" in line]
    assert sentence.endswith(f", {guidance}.")


def test_every_familys_task_has_a_name_on_the_hub() -> None:
    """Ours where they are the same, else the one in PIPELINE_TAGS."""
    tasks = {families.of_pipeline(name, name).card.task for name in families.BUILT_IN}
    assert {PIPELINE_TAGS.get(task, task) for task in tasks} <= TASKS
