"""What comes with the built-in text-to-image teachers: real samples, and how students measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .data.captioned_digits import Caption
from .data.captioned_latents import CaptionedLatents
from .data.loading import TensorData
from .methods.base import Method
from .metrics.caption_quality import CaptionSampler, measure_captioned
from .sampling import NoiseStreams, sample_student, sample_teacher
from .teachers import Teacher

CAPTIONED = ("digits-flow", "digits-t2i")
REAL_SAMPLES = 10_000  # pictures that are drawn and encoded before training: about a minute


def captioned_data(teacher: Teacher, count: int = REAL_SAMPLES) -> TensorData:
    """Latents and conditionings of the captioned digits, in memory."""

    def encode_images(pixels: Tensor) -> Tensor:
        return teacher.family.encode_images(teacher, pixels).to("cpu")

    return CaptionedLatents.of(encode_images, count).told(teacher.encode)


def teacher_sampler(teacher: Teacher, steps: int, guidance_scale: float) -> CaptionSampler:
    """Prompts and image seeds -> pictures of the teacher."""

    def sampler(prompts: Sequence[Caption], seeds: range) -> Tensor:
        cond = teacher.encode([prompt.text for prompt in prompts])
        z = NoiseStreams(seeds).normal(teacher.sample_shape)
        return teacher.decode(sample_teacher(teacher, cond, z, steps, guidance_scale))

    return sampler


def student_sampler(method: Method, teacher: Teacher) -> CaptionSampler:
    """Prompts and image seeds -> pictures of the generator as it is when called."""

    def sampler(prompts: Sequence[Caption], seeds: range) -> Tensor:
        cond = teacher.encode([prompt.text for prompt in prompts])
        generator, shape = method.roles["generator"].frozen, teacher.sample_shape
        x0 = sample_student(generator, method.plan, cond, shape, NoiseStreams(seeds))
        return teacher.decode(x0)

    return sampler


def captioned_evaluation(
    method: Method, teacher: Teacher, num_samples: int
) -> Callable[[], Mapping[str, float]]:
    """Quality of the student as it is when called, on the evaluation prompts."""

    @torch.no_grad()
    def evaluate() -> Mapping[str, float]:
        quality = measure_captioned(student_sampler(method, teacher), num_samples)
        return {key: value for key, value in quality.record().items() if key != "seed"}

    return evaluate
