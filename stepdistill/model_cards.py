"""The README.md of an exported student: what it is, and code that the export has run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from .backbones.family import dtype_keyword
from .plans import StepPlan
from .teachers import LoadOptions, Teacher

# the hub's names of tasks
PIPELINE_TAGS = {
    "text-to-image": "text-to-image",
    "text-to-video": "text-to-video",
    "image-to-video": "image-to-video",
    "class-to-image": "unconditional-image-generation",
}


def loading_code(options: LoadOptions) -> str:
    """Python that loads the folder it runs in as ``pipeline``."""
    return f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("."{_dtype(options)})
"""


def lora_loading_code(teacher: Teacher, files: dict[str, dict[str, Any]], scheduler: Path) -> str:
    """The same for a LoRA: the teacher's pipeline, each of ``files`` with its arguments, and the
    scheduler.
    """
    name = json.loads((scheduler / "scheduler_config.json").read_text())["_class_name"]
    loads = "".join(
        f"pipeline.load_lora_weights({_arguments({'': '.', 'weight_name': file, **given})})\n"
        for file, given in files.items()
    )
    return f"""import torch
from diffusers import DiffusionPipeline, {name}

pipeline = DiffusionPipeline.from_pretrained({teacher.source!r}{_dtype(teacher.options)})
{loads}pipeline.scheduler = {name}.from_pretrained(".", subfolder="scheduler")
"""


def sampling_call(call: dict[str, Any], plan: StepPlan) -> str:
    """Python that samples ``pipeline`` once, with every argument that it needs."""
    pictures = [name for name, value in call.items() if hasattr(value, "save")]
    opened = "".join(f'{name} = Image.open("{name}.png")\n' for name in pictures)
    imported = "from PIL import Image\n\n" if pictures else ""
    given = {name: value for name, value in call.items() if name not in pictures}
    arguments = _arguments({**given, "num_inference_steps": plan.steps})
    named = "".join(f", {name}={name}" for name in pictures)
    return f"{imported}{opened}samples = pipeline({arguments}{named})[0]\n"


def model_card(
    record: dict[str, Any], teacher: Teacher, plan: StepPlan, code: str, lora: bool = False
) -> str:
    """The text of README.md."""
    header: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": PIPELINE_TAGS.get(teacher.family.card.task, "text-to-image"),
        "tags": ["stepdistill", "step-distillation", *(["lora"] if lora else [])],
    }
    if teacher.name.count("/") == 1 and not Path(teacher.name).exists():
        header["base_model"] = teacher.name
    kind = "LoRA that makes a student" if lora else "student"
    told = {key: record[key] for key in sorted(record) if key != "metrics"}
    shown = "\n".join(f"| {key} | {json.dumps(value)} |" for key, value in told.items())
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# A {plan.steps}-step {kind} of `{teacher.name}`

{_steps(teacher, plan)}{_quality(record.get("metrics", {}))}
This code, run in this folder, was compared with the trainer when the folder was written:

```python
{code.strip()}
```

| field | value |
|---|---|
{shown}
"""


def _steps(teacher: Teacher, plan: StepPlan) -> str:
    """Where the network is called, in its own timesteps."""
    times = torch.tensor(plan.times, dtype=torch.float64)
    native = teacher.denoiser.schedule.timestep(times).tolist()
    listed = ", ".join(f"{step:.4g}" for step in native)
    calls = "call" if plan.steps == 1 else "calls"
    return f"{plan.steps} network {calls} a sample, at timestep {listed}, without guidance.\n"


def _quality(metrics: dict[str, float]) -> str:
    """What was measured of these very weights."""
    if not metrics:
        return ""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    return f"\nMeasured during training:\n\n| measure | value |\n|---|---|\n{rows}\n"


def _dtype(options: LoadOptions) -> str:
    if options.dtype == "float32":
        return ""
    return f", {dtype_keyword()}=torch.{options.dtype}"


def _arguments(given: dict[str, Any]) -> str:
    """name=value, ...; the value alone where the name is empty."""
    return ", ".join(f"{name}={value!r}" if name else repr(value) for name, value in given.items())
