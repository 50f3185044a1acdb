"""Network calls of a training, against counts by hand, the loop itself and torch's count of work.

By hand, a sample: a network without gradients is 1, with them 3. DMD2's critic update in one step
is the generator (1) and the critic (3); its generator update the generator (3), the critic (1) and
the teacher (1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_teacher
from torch.utils.flop_counter import FlopCounterMode

from stepdistill.data import TensorData
from stepdistill.draws import Draws
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import (
    DMD2,
    ECT,
    METHODS,
    DMD2Config,
    ECTConfig,
    Regression,
    RegressionConfig,
)
from stepdistill.methods.base import Batch
from stepdistill.network_calls import Calls, calls_of, calls_of_sampler, counting, over_branches
from stepdistill.plans import StepPlan
from stepdistill.sampling import sample_teacher
from stepdistill.teachers import Teacher

SIZE = 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def batch_of(teacher: Teacher, draws: Draws) -> Batch:
    x0, z = torch.randn(2, SIZE, 1, 8, 8)
    return Batch(x0, teacher.probe().expand(SIZE), draws, z)


def counted(teacher: Teacher, method: Any) -> Calls:
    return calls_of(method, SIZE, lambda draws: batch_of(teacher, draws), 100)


def dmd2(teacher: Teacher, steps: int = 1, **settings: Any) -> DMD2:
    config = DMD2Config(**{"gan_weight": 0.0, **settings})
    return DMD2.from_teacher(teacher, StepPlan.uniform(steps), config)


BY_HAND = {
    "plain": ({}, 1 + 3, 3 + 1 + 1),
    "guidance": ({"guidance_scale": 2.0}, 1 + 3, 3 + 1 + 2),
    # critic: fake and real samples in one pass; generator: the critic's view with gradients
    "gan": ({"gan_weight": 0.1, "gan_own_noise": False}, 1 + 2 * 3, 3 + 3 + 1),
    # the GAN's fake samples are noised anew: a pass more in both
    "gan with own noise": ({"gan_weight": 0.1, "gan_own_noise": True}, 1 + 3 * 3, 3 + 1 + 3 + 1),
    "gan with r1": (
        {"gan_weight": 0.1, "gan_own_noise": False, "r1_weight": 1.0},
        1 + 3 * 3,
        3 + 3 + 1,
    ),
    # an exit at step 0, 1, 2 or 3 has so many steps before it, without gradients
    "four steps": ({"steps": 4}, 1.5 + 1 + 3, 1.5 + 3 + 1 + 1),
    "through four steps": ({"steps": 4, "through_all_steps": True}, 4 + 3, 4 * 3 + 1 + 1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_dmd2_by_hand(name: str, teacher: Teacher) -> None:
    settings, critic, generator = BY_HAND[name]
    found = counted(teacher, dmd2(teacher, **settings))
    assert found.updates == {"critic": critic, "generator": generator}
    assert found.critic_steps == DMD2Config().critic_steps
    each = critic + generator / found.critic_steps
    assert found.per_iteration == pytest.approx(each)


def test_guidance_at_some_noise_levels(teacher: Teacher) -> None:
    """Samples outside the interval cost one call of the teacher, others two: half of each."""
    method = dmd2(teacher, guidance_scale=2.0, guidance_interval=(0.0, 0.5), t_min=0.0, t_max=1.0)
    found = counted(teacher, method).updates["generator"]
    assert found == pytest.approx(3 + 1 + 1.5, abs=0.15)


def test_methods_without_a_critic(teacher: Teacher) -> None:
    ect = ECT.from_teacher(teacher, StepPlan(), ECTConfig())
    assert counted(teacher, ect).updates == {"generator": 1 + 3}
    regression = Regression.from_teacher(teacher, StepPlan(), RegressionConfig())
    assert counted(teacher, regression).updates == {"generator": 3}


OTHERS_BY_HAND = {
    # the pairs' regression is a pass more of the generator
    "dmd": ({}, 1 + 3, 3 + 1 + 1 + 3),
    # DMD2's, its GAN at the noise that the matching sees
    "fdiv": ({}, 1 + 2 * 3, 3 + 3 + 1),
    # both scores guided, the critic's update is not
    "vsd": ({"guidance_scale": 4.5}, 1 + 3, 3 + 2 + 2),
    "snoopi": ({}, 1 + 3, 3 + 2 + 2),
    # gradients through both scores; under guidance in the critic's update too
    "sid": ({"guidance_scale": 1.0}, 1 + 3, 3 + 3 + 3),
    "sid, guided": ({"guidance_scale": 2.0}, 1 + 2 * 3, 3 + 2 * 3 + 2 * 3),
    # SiD's, and once more for what is to be forgotten
    "sfd": ({"forget": ("3",)}, 2 * (1 + 3), 2 * (3 + 3 + 3)),
    # no critic: the teacher sees fake and real samples, then fake ones with gradients
    "ladd": ({}, 1 + 2, 3 + 3),
}


@pytest.mark.parametrize("name", OTHERS_BY_HAND)
def test_the_others_by_hand(name: str, teacher: Teacher) -> None:
    settings, critic, generator = OTHERS_BY_HAND[name]
    kind = METHODS[name.partition(",")[0]]
    method = kind.from_teacher(teacher, StepPlan(), kind.Config(**settings))
    assert counted(teacher, method).updates == {"critic": critic, "generator": generator}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("iterations", [2, 7])
def test_equals_what_the_loop_calls(
    steps: int, iterations: int, teacher: Teacher, tmp_path: Path
) -> None:
    """A whole run of ``fit``, counted as it goes; none of these draws an exit step."""
    more = {"through_all_steps": True} if steps > 1 else {}
    settings = {"gan_weight": 0.1, "gan_own_noise": False, "critic_steps": 3, **more}
    expected = counted(teacher, dmd2(teacher, steps, **settings))
    cond = teacher.encode([i % 10 for i in range(32)])
    data = TensorData(torch.randn(32, 1, 8, 8), cond)
    method = dmd2(teacher, steps, **settings)
    with counting() as counter:
        fit(method, data, FitConfig(max_steps=iterations, batch_size=SIZE), tmp_path)
    assert counter.calls == expected.of(iterations, SIZE)


def test_a_call_is_the_work_that_torch_counts(teacher: Teacher) -> None:
    """By torch's counter of multiplications: an update's, over those of one forward, are its calls.

    The first layer needs no gradient for its input, so that a backward is a little below two.
    """
    cond, t = teacher.probe().expand(SIZE), torch.full((SIZE,), 0.5)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        teacher.denoiser(torch.randn(SIZE, 1, 8, 8), t, cond)
    method = dmd2(teacher)
    for purpose, calls in counted(teacher, method).updates.items():
        with FlopCounterMode(display=False) as update:
            loss = getattr(method, f"{purpose}_loss")(batch_of(teacher, Draws(0, 1, purpose)))
            loss.value.backward()
        ratio = update.get_total_flops() / forward.get_total_flops()
        assert 0.93 * calls < ratio <= calls


def test_the_samples_of_the_teacher(teacher: Teacher) -> None:
    """Heun's method takes 2 steps - 1 calls, and twice as many under guidance."""
    z = torch.randn(3, 1, 8, 8)
    cond = teacher.probe().expand(3)
    for scale, passes in ((1.0, 1), (2.0, 2)):
        found = calls_of_sampler(lambda s=scale: sample_teacher(teacher, cond, z, 5, s))
        assert found == 3 * passes * (2 * 5 - 1)


def test_branches_are_weighed_as_they_come() -> None:
    """A second draw that only one branch makes: 1/3 (10, 20, 30 or 40 evenly) + 1/3 5 + 1/3 6."""

    def value(draws: Draws) -> float:
        first = draws.shared_index(3)
        return 10.0 * (1 + draws.shared_index(4)) if first == 0 else 4.0 + first

    assert over_branches(value, 0, 1, "generator") == pytest.approx(25 / 3 + 5 / 3 + 6 / 3)


@pytest.mark.parametrize("critic_steps", [1, 3, 5])
def test_iterations_of_a_budget(critic_steps: int) -> None:
    """The most that are paid for: one more would be too many."""
    calls = Calls({"critic": 7.0, "generator": 8.5}, critic_steps)
    for budget in (0, 55, 56, 57, 1_000, 12_345):
        found = calls.iterations(budget, 8)
        spent = [
            8 * sum(7.0 + 8.5 * (i % critic_steps == 0) for i in range(1, n + 1))
            for n in (found, found + 1)
        ]
        assert calls.of(found, 8) == pytest.approx(spent[0])
        assert spent[0] <= budget < spent[1]


class Phases:
    """No method: its first sixteenth takes the network twice."""

    updates, critic_steps = {"generator": ("generator",)}, 1

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def generator_loss(self, batch: Batch) -> None:
        t = torch.full((SIZE,), 0.5)
        for _ in range(2 if batch.draws.iteration <= 6 else 1):
            self.teacher.denoiser(batch.x0, t, batch.cond)


def test_a_phase_counts_by_its_length(teacher: Teacher) -> None:
    assert counted(teacher, Phases(teacher)).updates == {"generator": 1 + 1 / 16}


def test_nothing_is_left_hooked(teacher: Teacher) -> None:
    with counting() as counter:
        pass
    teacher.denoiser(torch.randn(1, 1, 8, 8), torch.ones(1), teacher.probe())
    assert counter.calls == 0
