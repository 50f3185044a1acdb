"""A scheduler that walks the trained noise levels of a few-step flow model, whatever they are.

It travels in a model's ``scheduler`` folder and needs diffusers alone:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class FewStepFlowScheduler(SchedulerMixin, ConfigMixin):
    """x_t = (1 - sigma) x0 + sigma eps, v = eps - x0, at given levels sigma.

    Between two levels x0 is noised again, (1 - s) x0 + s eps with fresh eps, or with
    ``stochastic_sampling=False`` moved along v. The first input is unit noise at any first level.

    Args:
        noise_levels: of the trained steps, falling, in (0, 1]
        whole: whether only all steps together make a sample; otherwise an evenly spaced part of
            them does too
        shift: of the schedule that the model was trained with
    """

    __module__ = "few_step_flow"  # diffusers names it so in model_index.json, again when re-saved
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        noise_levels: list[float] = [1.0],  # noqa: B006 (a list is what JSON gives back)
        num_train_timesteps: int = 1000,
        stochastic_sampling: bool = True,
        whole: bool = False,
        shift: float = 1.0,
    ) -> None:
        self.set_timesteps(len(noise_levels))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """The trained levels. Of ``sigmas``, which some pipelines give, only the number counts.

        ValueError for a number of steps that the model was not trained for.
        """
        count = len(sigmas) if num_inference_steps is None else num_inference_steps
        levels = list(self.config.noise_levels)
        if count < 1 or len(levels) % count or (self.config.whole and count != len(levels)):
            parts = "" if self.config.whole else " or a part that divides them"
            raise ValueError(f"trained for {len(levels)} steps: use them{parts}, not {count}")
        taken = torch.tensor(levels[:: len(levels) // count], device=device)
        self.num_inference_steps = count
        self.timesteps = taken * self.config.num_train_timesteps
        self.sigmas = torch.cat([taken, taken.new_zeros(1)])
        self.step_index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The step to begin with."""
        self.step_index = begin_index

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample at the next level, and x0 after the last."""
        sigma, following = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        x_t, v = sample.float(), model_output.float()
        x0 = x_t - sigma * v
        if following == 0:
            moved = x0
        elif self.config.stochastic_sampling:
            eps = randn_tensor(x_t.shape, generator, x_t.device, x_t.dtype)
            moved = (1 - following) * x0 + following * eps
        else:
            moved = x_t + (following - sigma) * v
        self.step_index += 1
        moved = moved.to(model_output.dtype)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> None:
        """With this file, without which the folder would not load again."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        copy = Path(save_directory) / Path(__file__).name
        if copy.resolve() != Path(__file__).resolve():
            shutil.copyfile(__file__, copy)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
