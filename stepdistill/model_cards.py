"""The README.md of an exported student: what it is, and code that the export has run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from .backbones import from_file
from .backbones.family import dtype_keyword
from .plans import StepPlan
from .shipped import needs_trust
from .single_file import described_in, whole_description
from .sources import read_model_index, shown_source
from .teachers import LoadOptions, Teacher

# the hub's names of tasks, where they differ from ours
PIPELINE_TAGS = {
    "class-to-image": "unconditional-image-generation",
    "unconditional": "unconditional-image-generation",
}


def loading_code(options: LoadOptions, folder: Path) -> str:
    """Python that loads the folder it runs in, which is ``folder``, as ``pipeline``."""
    trusted = ", trust_remote_code=True" if needs_trust(folder) else ""
    return f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("."{_dtype(options)}{trusted})
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
    classes, loaded = _teacher_loaded(teacher)
    imported = f"from diffusers import {', '.join(sorted({*classes, name}))}\n"
    for file in scheduler.glob("*.py"):  # one of ours, where diffusers has none
        imported = (
            f"import sys\n\nfrom diffusers import {', '.join(sorted(classes))}\n\n"
            f'sys.path.insert(0, "scheduler")\nfrom {file.stem} import {name}\n'
        )
    return f"""import torch
{imported}
pipeline = {loaded}
{loads}pipeline.scheduler = {name}.from_pretrained(".", subfolder="scheduler")
"""


def _teacher_loaded(teacher: Teacher) -> tuple[list[str], str]:
    """The diffusers classes that load the teacher's pipeline, and the call that does."""
    source, dtype = teacher.source, _dtype(teacher.options)
    if not Path(source).is_file():
        return ["DiffusionPipeline"], f"DiffusionPipeline.from_pretrained({source!r}{dtype})"
    file, config = Path(source), teacher.options.config
    folder, told = described_in(file, config), whole_description(file, config)
    kinds, names = dict(from_file.classes(folder)), from_file.held(file, folder)
    single = [name for name in names if hasattr(kinds[name], "from_single_file")]
    if single == names:  # no encoders: the pipeline is the folder's, but for these
        parts = {
            name: f"{kinds[name].__name__}.from_single_file("
            f"{source!r}, config={told!r}, subfolder={name!r}{dtype})"
            for name in names
        }
        parts |= (
            {from_file.LEFT_OUT: "None"} if from_file.LEFT_OUT in read_model_index(folder) else {}
        )
        used, call = ["DiffusionPipeline"], f"DiffusionPipeline.from_pretrained({told!r}"
        used += [kinds[name].__name__ for name in names]
    else:
        kind, used = teacher.family.card.pipeline, [teacher.family.card.pipeline]
        call, parts = f"{kind}.from_single_file({source!r}, config={told!r}", {}
        if "vae" in kinds and "vae" not in names:
            parts = {"vae": f"{kinds['vae'].__name__}.from_pretrained({told!r}, subfolder='vae')"}
            used.append(kinds["vae"].__name__)
    return used, call + "".join(f", {k}={v}" for k, v in parts.items()) + f"{dtype})"


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
        "pipeline_tag": PIPELINE_TAGS.get(teacher.family.card.task, teacher.family.card.task),
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
# A {plan.steps}-step {kind} of `{shown_source(teacher.name)}`

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
    """Where the network is called, in its own timesteps, and under which guidance."""
    times = torch.tensor(plan.times, dtype=torch.float64)
    native = teacher.denoiser.schedule.timestep(times).tolist()
    listed = ", ".join(f"{step:.4g}" for step in native)
    calls = "call" if plan.steps == 1 else "calls"
    told = teacher.family.told_guidance(teacher.pipeline)
    guidance = "without guidance" if told is None else f"each told guidance_scale={told}"
    return f"{plan.steps} network {calls} a sample, at timestep {listed}, {guidance}.\n"


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
