"""Roles: what a frozen view shares and stops, LoRA roles over one base, and the average."""

import math

import pytest
import torch
from mid_networks import MIDS
from mid_networks import denoiser as mid_denoiser
from peft import LoraConfig
from run_tiny import SCHEDULE, Tiny, network
from torch import nn
from torch.utils.checkpoint import checkpoint

from stepdistill.backbones.mlp import MLP
from stepdistill.conditioning import Conditioning
from stepdistill.ema import EMA
from stepdistill.errors import UserError
from stepdistill.export import as_loaded
from stepdistill.roles import LoRAOptions, Role, full, lora, merged, share, trainable_role

TARGETS = ["inward", "time", "0.1", "0.3", "1.1", "1.3"]  # the last four are in the two blocks
N = 6


class CheckpointedMLP(MLP):
    """The same network, its blocks recomputed in the backward pass."""

    def forward(self, x, timestep, class_labels=None):
        frequency = 2.0 ** torch.arange(8, dtype=x.dtype) * math.pi / 8
        angle = timestep[:, None] * self.time_scale * frequency
        h = self.inward(x) + self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = h + self.label(class_labels)
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=False)
        return self.outward(h)


def denoiser(dropout=0.0, checkpointed=False, seed=0):
    made = network(Tiny(dropout=dropout), seed)
    if checkpointed:
        made.backbone.network.__class__ = CheckpointedMLP
    return made


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(N, 2, generator=generator).requires_grad_()
    t = torch.rand(N, generator=generator, dtype=torch.float64)
    return x_t, t, Conditioning({"class_labels": torch.arange(N) % 8})


def x0_hat(call, seed=0):
    return call(*batch(seed)).x0_hat


def pointers(module):
    return [p.data_ptr() for p in module.parameters()]


def step(role, seed=3, fused=True):
    """One AdamW step of the kind the loop makes."""
    optimizer = torch.optim.AdamW(role.trainable().values(), lr=0.05, fused=fused)
    x0_hat(role, seed).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def randomised(role, seed=4):
    """Trained adapters: at the start LoRA's second factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.trainable().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return role


# --- views ------------------------------------------------------------------------------------


def test_view_is_the_same_storage_and_learns_nothing():
    """A view holds no weights of its own, none of them trains, and it has its own eval mode."""
    role = full("critic", denoiser())
    assert pointers(role.frozen) == pointers(role.module)
    assert not any(p.requires_grad for p in role.frozen.parameters())
    assert all(p.requires_grad for p in role.module.parameters())
    assert role.module.training
    assert not role.frozen.training
    assert role.frozen is role.frozen


def test_view_follows_steps_and_loads():
    """After an AdamW step, and after a load, the view answers with the new weights, bit for bit."""
    role = full("critic", denoiser())
    view = role.frozen
    before = x0_hat(view)
    step(role)
    stepped = x0_hat(view)
    assert not torch.equal(stepped, before)
    assert torch.equal(stepped, x0_hat(role.module.eval()))
    role.module.load_state_dict(denoiser(seed=5).state_dict())
    assert torch.equal(x0_hat(view), x0_hat(denoiser(seed=5)))


def test_view_is_always_in_eval_mode():
    """Dropout never acts in a view, whatever mode the role is put in, so critic = teacher holds."""
    teacher = denoiser(dropout=0.5)
    role = full("critic", teacher)
    role.module.train()
    assert torch.equal(x0_hat(role.frozen), x0_hat(teacher))
    assert not torch.equal(x0_hat(role), x0_hat(teacher))
    assert role.module.training


def test_views_gradient_reaches_the_inputs_alone():
    """Through a view the gradient flows to x_t, exactly, and to no weight of role or view."""
    role = full("critic", denoiser())
    x_t, t, cond = batch()
    (through_view,) = torch.autograd.grad(role.frozen(x_t, t, cond).x0_hat.sum(), x_t)
    (through_role,) = torch.autograd.grad(role(x_t, t, cond).x0_hat.sum(), x_t)
    assert torch.equal(through_view, through_role)
    x0_hat(role.frozen).sum().backward()
    everywhere = [*role.module.parameters(), *role.frozen.parameters()]
    assert all(p.grad is None for p in everywhere)


def test_checkpointing_changes_no_bit():
    """Recomputation finds the flags the forward saw: values and gradients are bit-equal."""
    gradients = []
    for checkpointed in (False, True):
        role = full("critic", denoiser(dropout=0.3, checkpointed=checkpointed))
        x_t, t, cond = batch()
        torch.manual_seed(0)  # of the dropout
        score = role.frozen(x_t, t, cond).x0_hat  # a score and a trained pass in one graph
        (score.sum() + role(x_t, t, cond).x0_hat.square().sum()).backward()
        gradients.append([x_t.grad, *(p.grad for p in role.trainable().values())])
        assert all(p.grad is None for p in role.frozen.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_step_between_a_views_forward_and_backward_raises():
    """The view's graph is of the old weights, and says so rather than giving wrong gradients.

    Not after a fused step, which torch does not count; the loop steps after all backwards.
    """
    role = full("critic", denoiser())
    loss = x0_hat(role.frozen).sum()
    step(role, fused=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_moved_role_is_noticed():
    """Moving reallocates: the old view is found out, and ``prepare`` makes a fresh one."""
    role = full("critic", denoiser())
    role.check_sharing()
    role.module.to(torch.float64)
    with pytest.raises(RuntimeError, match="critic lost its weights"):
        role.check_sharing()

    class Mover:
        def prepare_model(self, module):
            return module.to(torch.bfloat16)

    role.prepare(Mover())
    role.check_sharing()
    assert {p.dtype for p in role.frozen.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in role.trainable().values()} == {torch.bfloat16}


def test_moved_buffers_are_noticed():
    """Buffers are shared with the view too."""
    role = Role("critic", nn.BatchNorm1d(3))
    role.check_sharing()
    role.module.running_mean = role.module.running_mean.clone()
    with pytest.raises(RuntimeError, match="lost its weights"):
        role.check_sharing()


def test_a_view_taps_its_own_features():
    """Asking a view for features writes nothing into the role's taps, nor the reverse."""
    role = full("critic", denoiser())
    x_t, t, cond = batch()
    features = role.frozen(x_t, t, cond, features=True).features
    assert len(features) == 1
    assert not role.module.backbone.taps[0].on
    own = role.module.eval()(x_t, t, cond, features=True).features
    assert torch.equal(own[0], features[0])


# --- LoRA -------------------------------------------------------------------------------------


def lora_roles(checkpointed=False):
    teacher = denoiser(checkpointed=checkpointed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS)
    torch.manual_seed(1)
    return teacher, lora("generator", teacher, config), lora("critic", teacher, config)


def half_roles(name="dit"):
    """LoRA roles over a diffusers network in bf16."""
    teacher = mid_denoiser(MIDS[name], "cpu", torch.bfloat16)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_out.0"])
    torch.manual_seed(1)
    return teacher, lora("generator", teacher, config), lora("critic", teacher, config)


def answer(call, name="dit"):
    """x0_hat of two noises at half time."""
    mid, t = MIDS[name], torch.full((2,), 0.5)
    x_t = torch.randn(2, *mid.shape, generator=torch.Generator().manual_seed(0))
    return call(x_t, t, mid.conditioning("cpu")).x0_hat


def test_adapters_are_float32_over_a_base_in_half_precision():
    """As steps of 1e-6 need it: in bf16 they would be lost beside weights of 0.1."""
    teacher, generator, critic = half_roles()
    for role in (generator, critic):
        assert {p.dtype for p in role.trainable().values()} == {torch.float32}
        frozen = [p for p in role.module.parameters() if not p.requires_grad]
        assert {p.dtype for p in frozen} == {torch.bfloat16}
        assert {id(p) for p in frozen} == {id(p) for p in teacher.parameters()}
    assert {p.dtype for p in generator.frozen.parameters()} == {torch.float32, torch.bfloat16}
    generator.check_sharing()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "sd3", "dit"])
@pytest.mark.parametrize("autocast", [False, True])
def test_float32_adapters_train_over_bf16(name, autocast):
    """With autocast and without: fresh, the teacher's answer; then a small step is not lost."""
    teacher, generator, _ = half_roles(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        assert torch.equal(answer(generator.frozen, name), answer(teacher, name))
        randomised(generator)
        before = {k: p.detach().clone() for k, p in generator.trainable().items()}
        optimizer = torch.optim.AdamW(generator.trainable().values(), lr=1e-6, weight_decay=0)
        loss = answer(generator, name).square().sum()
    loss.backward()
    optimizer.step()
    moved = [(generator.trainable()[k] - v).abs().max() for k, v in before.items()]
    assert all(5e-7 < m < 2e-6 for m in moved)


def test_full_weights_are_float32_copies_of_half_precision():
    """A step of 1e-4 of a weight would be lost in bf16; the teacher keeps its dtype."""
    teacher = denoiser().bfloat16()
    role = full("generator", teacher)
    assert {p.dtype for p in role.module.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    before = [p.clone() for p in role.module.parameters()]
    with torch.no_grad():
        for p in role.module.parameters():
            p.mul_(1 + 1e-4)
    for old, new in zip(before, role.module.parameters(), strict=True):
        assert not torch.equal(old[old != 0], new[old != 0]) or not bool(old.any())
    written = as_loaded(role.module, teacher)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in role.module.parameters()} == {torch.float32}


def test_merged_over_bf16_stays_bf16():
    """The fused copy has the base's dtype, as it is exported, and nearly the role's answer."""
    teacher, generator, _ = half_roles()
    randomised(generator)
    plain = merged(generator).eval()
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    trained, base = answer(generator.frozen), answer(teacher)
    assert (answer(plain) - trained).norm() < 0.1 * (trained - base).norm()


def test_lora_roles_and_teacher_share_one_base():
    """Three roles, one copy of the base: adapters are the only memory of their own."""
    teacher, generator, critic = lora_roles()
    base = set(pointers(teacher))
    own = [{p.data_ptr() for p in r.trainable().values()} for r in (generator, critic)]
    assert set(pointers(generator.module)) == base | own[0]
    assert set(pointers(critic.module)) == base | own[1]
    assert not own[0] & own[1]
    assert not (own[0] | own[1]) & base
    assert all(".default." in name for name in generator.trainable())
    assert not any("lora" in name for name, _ in teacher.named_parameters())


def test_fresh_lora_role_is_the_teacher():
    """Until it is trained, a LoRA role answers exactly as the teacher; so does its view."""
    teacher, generator, critic = lora_roles()
    for call in (generator, critic, generator.frozen):
        assert torch.equal(x0_hat(call), x0_hat(teacher))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_lora_gradients_land_in_the_roles_own_adapters(checkpointed):
    """A loss of the generator through the critic's view trains the generator's adapters alone."""
    teacher, generator, critic = lora_roles(checkpointed)
    randomised(generator, 2), randomised(critic, 3)
    t, cond = batch()[1:]
    x0 = x0_hat(generator)
    score = critic.frozen(x0, t, cond).x0_hat - teacher(x0, t, cond).x0_hat  # as SiD's
    (score * x0).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.trainable().values())
    assert all(p.grad is None for p in critic.module.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    frozen = [p for p in generator.module.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_lora_gradients_do_not_depend_on_checkpointing():
    """Several roles over one base, recomputed in backward: each finds its own adapters again."""
    gradients = []
    for checkpointed in (False, True):
        _, generator, critic = lora_roles(checkpointed)
        randomised(generator, 2), randomised(critic, 3)
        t, cond = batch()[1:]
        x0 = x0_hat(generator)
        (critic.frozen(x0, t, cond).x0_hat * x0).sum().backward()
        gradients.append([p.grad for p in generator.trainable().values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_lora_step_changes_neither_teacher_nor_critic():
    """Training one role leaves every other role's answer bit-identical."""
    teacher, generator, critic = lora_roles()
    before = [x0_hat(call) for call in (teacher, critic.frozen, generator.frozen)]
    step(generator)
    step(generator)  # the first moves only the second factor
    after = [x0_hat(call) for call in (teacher, critic.frozen, generator.frozen)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]


def test_merged_is_a_plain_copy():
    """Merging fuses into a copy: same answers, the teacher's keys, and the base untouched."""
    teacher, generator, _ = lora_roles()
    randomised(generator)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    answer = x0_hat(generator.module.eval())
    plain = merged(generator).eval()
    assert (x0_hat(plain) - answer).abs().max() < 1e-6
    assert (answer - x0_hat(teacher)).abs().max() > 0.1
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert not set(pointers(plain)) & set(pointers(teacher))
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert torch.equal(x0_hat(generator.module), answer)


def test_targets_that_match_nothing():
    """Layers to adapt that do not exist are the user's mistake, one of several too."""
    teacher = denoiser()
    config = LoraConfig(r=2, target_modules=["to_q"])
    with pytest.raises(UserError, match="LoRA for the generator"):
        lora("generator", teacher, config)
    options = LoRAOptions(rank=2, targets=("inward", "to_w"))
    with pytest.raises(UserError, match=r"called: \['to_w'\]"):
        trainable_role("generator", teacher, options, TARGETS)
    with pytest.raises(UserError, match="rank must be at least 0"):
        LoRAOptions(rank=-1)
    assert not any("lora" in name for name, _ in teacher.named_modules())


def test_trainable_role_is_full_or_lora():
    """Rank 0 is a copy with all weights learning; a rank gives adapters on the family's layers."""
    teacher = denoiser()
    copied = trainable_role("generator", teacher, LoRAOptions(), TARGETS)
    assert not set(pointers(copied.module)) & set(pointers(teacher))
    assert copied.trainable().keys() == dict(teacher.named_parameters()).keys()
    adapted = trainable_role("generator", teacher, LoRAOptions(rank=2), ["inward"])
    assert [name.split(".lora_")[0] for name in adapted.trainable()] == (
        ["backbone.network.inward"] * 2
    )
    assert not any(p.requires_grad for p in teacher.parameters())


def test_shared_skeleton_has_the_very_parameters():
    """Not frozen, a skeleton holds the same Parameter objects: moving one moves all."""
    teacher = denoiser()
    skeleton = share(teacher, frozen=False)
    pairs = zip(teacher.parameters(), skeleton.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert skeleton.schedule.sigma_max == SCHEDULE.sigma_max


# --- the average ------------------------------------------------------------------------------


def scalar_role(value):
    role = Role("generator", nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        role.module.weight.fill_(value)
    return role


@pytest.mark.parametrize("images", [1, 8, 50, 100])
def test_half_life_counts_images(images):
    """After half_life images the first weights count one half, whatever the batch size."""
    role = scalar_role(1.0)
    ema = EMA(role, half_life=100, rampup=math.inf)
    with torch.no_grad():
        role.module.weight.zero_()
    for update in range(100 // images):
        ema.update(images, (update + 1) * images)
    seen = 100 // images * images
    assert ema.weights["weight"].item() == pytest.approx(0.5 ** (seen / 100), rel=1e-5)


def test_half_life_ramps_up():
    """It is at most 5 % of the images seen: the first update forgets the start, by 2^-20."""
    role = scalar_role(1.0)
    ema = EMA(role, half_life=1000)
    with torch.no_grad():
        role.module.weight.zero_()
    ema.update(8, 8)
    assert ema.weights["weight"].item() == pytest.approx(2.0**-20, rel=0.05)
    ema.weights["weight"].fill_(1.0)
    ema.update(8, 8000)  # half-life 5 % of 8000 = 400
    assert ema.weights["weight"].item() == pytest.approx(0.5 ** (8 / 400), rel=1e-6)
    ema.weights["weight"].fill_(1.0)
    ema.update(8, 10**9)
    assert ema.weights["weight"].item() == pytest.approx(0.5 ** (8 / 1000), rel=1e-6)


def test_half_life_zero_is_the_live_network():
    """No averaging: the average is the weights of the last update."""
    role = full("generator", denoiser())
    ema = EMA(role, half_life=0)
    step(role)
    ema.update(8, 80_000)
    assert all(torch.equal(ema.weights[k], p) for k, p in role.trainable().items())


def test_applied_restores_bit_for_bit():
    """Inside, role and view carry the average; outside the live weights, even after an error."""
    role = full("generator", denoiser())
    ema = EMA(role, half_life=1000)
    average = x0_hat(role.frozen)
    step(role)
    live = {k: p.detach().clone() for k, p in role.trainable().items()}

    def look_and_fail():
        with ema.applied():
            assert torch.equal(x0_hat(role.frozen), average)
            raise KeyError

    with pytest.raises(KeyError):
        look_and_fail()
    assert all(torch.equal(p, live[k]) for k, p in role.trainable().items())
    assert torch.equal(x0_hat(role.frozen), x0_hat(role.module.eval()))
    assert not torch.equal(x0_hat(role.frozen), average)


def test_lora_average_holds_adapters_only():
    """The base is in no average: it never changes."""
    _, generator, _ = lora_roles()
    ema = EMA(generator, half_life=1000)
    assert ema.weights.keys() == generator.trainable().keys()
    assert all("lora_" in name for name in ema.weights)
    base = generator.module.backbone.network.inward.base_layer.weight.clone()
    randomised(generator)
    with ema.applied():
        assert torch.equal(generator.module.backbone.network.inward.base_layer.weight, base)
