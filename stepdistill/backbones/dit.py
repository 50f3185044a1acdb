"""DiT: a class-conditional transformer on latents (Peebles and Xie 2022); eps, learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from ..conditioning import Conditioning
from ..denoisers import Backbone
from ..errors import UserError
from ..teachers import LoadOptions, Stored, Teacher
from .family import FamilyCard
from .latent import LatentFamily


class DiTBackbone(Backbone):
    """DiTTransformer2DModel; its middle block is tapped."""

    network: DiTTransformer2DModel

    def __init__(self, network: DiTTransformer2DModel) -> None:
        super().__init__(network)
        self.tap(network.transformer_blocks[len(network.transformer_blocks) // 2])

    def train(self, mode: bool = True) -> DiTBackbone:
        """Label embeddings stay in eval mode: in training they would drop a tenth of the labels."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, LabelEmbedding):
                module.eval()
        return self

    def forward(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        output: Tensor = self.network(
            x, timestep=timestep, class_labels=cond["class_labels"], return_dict=False
        )[0]
        return output[:, : x.shape[1]]


class DiT(LatentFamily):
    """DiTPipeline. The label behind the last class means none, as in the stock pipeline."""

    card = FamilyCard(
        name="dit",
        task="class-to-image",
        pipeline="DiTPipeline",
        network="DiTTransformer2DModel",
        prediction="eps, learned variance",
        scheduler="LCMScheduler",
    )
    backbone = DiTBackbone
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "linear")
    output_type = "np"
    passes_generator = False

    def load(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        teacher = super().load(folder, card, options)
        return replace(teacher, num_classes=teacher.pipeline.transformer.config.num_embeds_ada_norm)

    def sample_shape(self, pipeline: Any, options: LoadOptions) -> tuple[int, ...]:
        config = pipeline.transformer.config
        if options.height is not None or options.width is not None:
            raise UserError("the stock DiT pipeline samples one size: leave height and width out")
        return (config.in_channels, config.sample_size, config.sample_size)

    def encode(self, teacher: Teacher, prompts: Sequence[Any]) -> Conditioning:
        """Class numbers -> Conditioning. UserError for one that the teacher does not have."""
        labels = torch.tensor([int(p) for p in prompts])
        classes = teacher.pipeline.transformer.config.num_embeds_ada_norm
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(f"class labels must lie in 0 to {classes - 1}: {labels.tolist()}")
        return Conditioning({"class_labels": labels})

    def null(self, teacher: Teacher) -> Conditioning:
        classes = teacher.pipeline.transformer.config.num_embeds_ada_norm
        return Conditioning({"class_labels": torch.tensor([classes])})

    def classes(self, pipeline: Any) -> int | None:
        embeds: int = pipeline.transformer.config.num_embeds_ada_norm
        return embeds

    def examples(self, teacher: Teacher, count: int) -> list[Any]:
        return [i % (teacher.num_classes or 1) for i in range(count)]

    def told(self, prompts: Sequence[Any]) -> dict[str, Any]:
        return {"class_labels": list(prompts)}

    def settings(self, teacher: Teacher) -> dict[str, Any]:
        return dict(self.student_call)

    def takes_size(self, teacher: Teacher, height: int, width: int) -> bool:
        return (height, width) == self.pixel_size(teacher)

    def load_without_encoders(
        self, folder: Path, card: dict[str, Any], options: LoadOptions, stored: Stored
    ) -> Teacher:
        teacher = super().load_without_encoders(folder, card, options, stored)
        return replace(teacher, num_classes=teacher.pipeline.transformer.config.num_embeds_ada_norm)

    def load_encoders(self, folder: Path, card: dict[str, Any], options: LoadOptions) -> Teacher:
        teacher = super().load_encoders(folder, card, options)
        return replace(teacher, num_classes=teacher.pipeline.transformer.config.num_embeds_ada_norm)

    def stock_output(self, teacher: Teacher, x0: Tensor) -> Tensor:
        return (self.decode(teacher, x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
