"""The loop: what it counts, steps, refuses, writes and saves. Runs that must be one run.

Whole runs of DMD2 with a GAN and of ECT on the exact 2-D ring (``run_tiny``), and stubs where only
the counting matters.
"""

import contextlib
import importlib.util
import math
import sys
import types
from dataclasses import replace
from itertools import chain

import pytest
import torch
from accelerate import Accelerator
from run_tiny import (
    Stub,
    Tiny,
    build,
    digest,
    free_port,
    go,
    history,
    network,
    numbers,
    precision,
    run,
    same,
    saved,
    start,
    state,
    stderr_of,
)
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stepdistill.cli import guarded
from stepdistill.discriminator import CriticTrunk, build_head
from stepdistill.ema import EMA
from stepdistill.errors import NonFiniteError, StepDistillError, UserError
from stepdistill.fit import FitConfig
from stepdistill.memory import estimate, out_of_memory_explained
from stepdistill.methods import DMD2, DMD2Config
from stepdistill.methods.base import Loss
from stepdistill.plans import StepPlan
from stepdistill.roles import full
from stepdistill.runs import RunFolder, read_metrics

DMD = Tiny(critic_steps=3)
ECT = Tiny(method="ect")


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def close(a, b, limit):
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a) <= limit


def flat(lists):
    return list(chain.from_iterable(lists))


@contextlib.contextmanager
def at_each_step(method, look):
    """Call ``look(name of the role, its optimizer)`` just before every optimizer step inside."""
    owners = {p: name for name, role in method.roles.items() for p in role.trainable().values()}

    def hook(optimizer, args, kwargs):
        look(owners[optimizer.param_groups[0]["params"][0]], optimizer)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- counting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("critic_steps", [1, 3, 5])
def test_critic_steps_in_every_iteration_generator_in_every_kth(tmp_path, critic_steps):
    """DMD2's counting: 100 iterations are 100 critic and 100 // k generator steps, critic first."""
    method = Stub(critic_steps)
    order = []
    with at_each_step(method, lambda name, _: order.append(name)):
        go(method, numbers(), tmp_path, max_steps=100, log_every=50)
    once = ["critic", "head"]
    expected = [once + ["generator"] * (i % critic_steps == 0) for i in range(1, 101)]
    assert order == flat(expected)
    assert order.count("generator") == 100 // critic_steps


def test_a_method_without_critic_steps_its_generator_in_each_iteration(tmp_path):
    """As ECT's: 100 iterations are 100 steps."""
    order = []
    method = Stub(critic=False)
    with at_each_step(method, lambda name, _: order.append(name)):
        go(method, numbers(), tmp_path, max_steps=100, log_every=50)
    assert order == ["generator"] * 100


@pytest.mark.parametrize("tiny", [DMD, ECT], ids=["dmd2", "ect"])
def test_real_methods_step_what_they_declare(tmp_path, tiny):
    """DMD2 with k = 3 and ECT, the real losses: steps a role in 7 iterations."""
    method, data = build(tiny)
    steps = dict.fromkeys(method.roles, 0)

    def count(name, _):
        steps[name] += 1

    with at_each_step(method, count):
        go(method, data, tmp_path, max_steps=7)
    dmd2 = {"critic": 7, "head": 7, "generator": 2}
    assert steps == (dmd2 if tiny is DMD else {"generator": 7})


def test_average_counts_images_of_generator_updates(tmp_path, monkeypatch):
    """The EMA moves once a generator update, by its images: 2 x 8 in 7 iterations with k = 3."""
    seen = []
    monkeypatch.setattr(EMA, "update", lambda self, images, total: seen.append((images, total)))
    go(Stub(3), numbers(), tmp_path, max_steps=7)
    assert seen == [(8, 8), (8, 16)]


def test_average_is_as_the_settings_say(tmp_path):
    """Half-life and ramp-up reach the average: one update on 8 images, half-life 8, is half way."""
    method = Stub(critic=False)
    before = method.roles["generator"].module.weight.item()
    result = go(method, numbers(), tmp_path, max_steps=1, ema_half_life=8, ema_rampup=1.0)
    after = method.roles["generator"].module.weight.item()
    assert result.ema.weights["weight"].item() == pytest.approx((before + after) / 2)
    assert before != after


def test_learning_rates_rise_and_fall(tmp_path):
    """Warm-up over 4, decay over 5 of 10 iterations: the factors, times each role's own rate."""
    method, rates = Stub(), []

    def look(name, optimizer):
        rates.append((name, optimizer.param_groups[0]["lr"] / method.learning_rates[name]))

    with at_each_step(method, look):
        go(method, numbers(), tmp_path, max_steps=10, lr_warmup=4, lr_decay=5)
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    for role in method.roles:
        assert [rate for name, rate in rates if name == role] == pytest.approx(factors)


def test_learning_rates_fall_to_their_end():
    """A fall over 4 iterations to a tenth: 1, 0.775, 0.55, 0.325 of it, never below."""
    config = FitConfig(max_steps=6, lr_decay=4, lr_end=0.1)
    factors = [config.lr_factor(i) for i in range(1, 7)]
    assert factors == pytest.approx([1, 1, 1, 0.775, 0.55, 0.325])


def test_constant_learning_rate_by_default():
    """Neither warm-up nor decay: the factor is 1 from the first iteration to the last."""
    config = FitConfig(max_steps=10)
    assert {config.lr_factor(i) for i in range(1, 11)} == {1.0}


def test_clipping_is_by_role(tmp_path):
    """Each role's gradient is cut to grad_clip on its own; the log keeps the norm before."""
    method, data = build(DMD)
    norms = []

    def look(name, optimizer):
        grads = [p.grad for p in optimizer.param_groups[0]["params"]]
        norms.append((name, torch.nn.utils.get_total_norm(grads).item()))

    with at_each_step(method, look):
        go(method, data, tmp_path, max_steps=3, grad_clip=1e-3)
    before = history(tmp_path)[-1]
    for name, norm in norms:
        assert norm == pytest.approx(1e-3, rel=1e-3)
        assert before[f"{name}/grad_norm"] > 2e-3
    assert [name for name, _ in norms] == ["critic", "head"] * 3 + ["generator"]


# --- what learns, and what does not -----------------------------------------------------------


def with_network_teacher():
    """DMD2 whose teacher and generator's origin is a frozen network, with weights to change."""
    tiny = Tiny(critic_steps=3)
    _, data = build(tiny)
    teacher = network(tiny)
    gan = CriticTrunk(build_head(teacher, (2,), data.cond))
    method = DMD2(
        full("generator", teacher),
        full("critic", teacher),
        teacher,
        StepPlan.uniform(2),
        DMD2Config(generator_lr=1e-2, critic_lr=1e-2, critic_steps=3, gan_weight=0.1),
        sample_shape=(2,),
        discriminator=gan,
    )
    return teacher, method, data


def test_teacher_never_changes(tmp_path):
    """After training the teacher's weights are bit-identical and have no gradient."""
    teacher, method, data = with_network_teacher()
    before = weights(teacher)
    go(method, data, tmp_path, max_steps=6)
    assert same(weights(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    assert not same(weights(method.generator.module), before)


def test_generator_waits_for_its_turn(tmp_path):
    """With k = 3, two iterations leave the generator bit-identical while critic and head learn."""
    _, method, data = with_network_teacher()
    before = {name: weights(role.module) for name, role in method.roles.items()}
    go(method, data, tmp_path, max_steps=2)
    unchanged = {n: same(weights(role.module), before[n]) for n, role in method.roles.items()}
    assert unchanged == {"generator": True, "critic": False, "head": False}


def test_each_loss_leaves_gradients_on_its_own_roles_alone(tmp_path):
    """At a generator step critic, head, teacher and views have no gradient; likewise the others."""
    teacher, method, data = with_network_teacher()
    seen = set()

    def look(name, _):
        trained = method.updates["generator" if name == "generator" else "critic"]
        for other, role in method.roles.items():
            some = [p.grad is not None for p in role.trainable().values()]
            stepped = other == "critic" and name == "head"  # its gradient is dropped already
            assert all(some) if other in trained and not stepped else not any(some)
            assert all(p.grad is None for p in role.frozen.parameters())
        assert all(p.grad is None for p in teacher.parameters())
        seen.add(name)

    with at_each_step(method, look):
        go(method, data, tmp_path, max_steps=3)
    assert seen == set(method.roles)


def test_a_weight_that_gets_no_gradient_is_named(tmp_path):
    """A layer the loss does not use is found at the first step, by name, before it is stepped."""
    method, data = build(ECT)
    method.generator.module.spare = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r"generator loss gives no gradient to 2.*spare\.weight"):
        go(method, data, tmp_path, max_steps=2)


def test_a_role_that_must_not_train_is_named(tmp_path):
    """A generator loss that runs the critic itself, not its view, is found at its first step."""
    method, data = build(Tiny(critic_steps=2, gan=False))
    proper = method.generator_loss

    def leaking(batch):
        loss = proper(batch)
        t = torch.full((len(batch.x0),), 0.5)
        return Loss(loss.value + method.critic(batch.x0, t, batch.cond).x0_hat.mean(), loss.logs)

    method.generator_loss = leaking
    with pytest.raises(RuntimeError, match="generator loss must not train, but gives gradients to"):
        go(method, data, tmp_path, max_steps=4)


# --- runs that are one run --------------------------------------------------------------------

EQUAL = {
    "dmd2-labelled": Tiny(double=True),
    "dmd2-unlabelled": Tiny(double=True, labelled=False),
    "dmd2-all-steps": Tiny(double=True, through_all_steps=True),
    "ect": Tiny(method="ect", double=True),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after 20 iterations in one process with whole batches, once a kind of run."""
    done = {}

    def of(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            run(EQUAL[name], folder)
            done[name] = state(folder)
        return done[name]

    return of


def test_the_runs_compared_move_all_roles(whole):
    """The comparisons below are of weights that 20 iterations have moved by much more than 1e-9."""
    moved = whole("dmd2-labelled")
    with precision(True):
        method, _ = build(EQUAL["dmd2-labelled"])
    for name, role in method.roles.items():
        for key, parameter in role.trainable().items():
            change = (moved[f"weights/{name}/{key}"] - parameter).abs().max()
            assert change > 1e-4, (name, key)


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EQUAL)
def test_accumulating_is_the_same_run(tmp_path, whole, name, accumulate):
    """Batch 8 equals 2 x 4 and 4 x 2: all weights, averages and moments to 1e-9 in float64."""
    tiny = EQUAL[name]
    run(replace(tiny, fit={"accumulate": accumulate}), tmp_path)
    assert close(state(tmp_path), whole(name), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accumulate"), [("dmd2-labelled", 1), ("dmd2-all-steps", 1), ("ect", 2)]
)
def test_two_processes_are_the_same_run(tmp_path, whole, name, accumulate):
    """Two gloo ranks with half the batch each equal one process: all roles, 20 iterations, 1e-9.

    Rank 0 alone writes; with accumulation each rank has two micro-batches.
    """
    folder, port = tmp_path / "run", free_port()
    tiny = replace(EQUAL[name], fit={"accumulate": accumulate})
    ranks = [start(tiny, folder, rank=r, ranks=2, port=port) for r in (0, 1)]
    for process in ranks:
        process.join(100)
    assert [p.exitcode for p in ranks] == [0, 0], stderr_of(folder) + stderr_of(folder, 1)
    assert close(state(folder), whole(name), 1e-9)


def test_logs_are_means_over_micro_batches(tmp_path):
    """A term logged with accumulation is the global batch's, not the last micro-batch's."""
    lines = []
    for accumulate in (1, 4):
        tiny = replace(EQUAL["ect"], fit={"accumulate": accumulate, "max_steps": 3})
        run(tiny, tmp_path / str(accumulate))
        lines.append(history(tmp_path / str(accumulate))[-1])
    terms = ("generator/loss", "generator/gap", "generator/x0_mean", "generator/grad_norm")
    for term in terms:
        assert lines[1][term] == pytest.approx(lines[0][term], rel=1e-6)


def test_workers_read_the_same_data(tmp_path):
    """Loading processes change no bit of the run."""
    for workers in (0, 1):
        run(replace(DMD, fit={"workers": workers, "max_steps": 4}), tmp_path / str(workers))
    assert same(state(tmp_path / "0"), state(tmp_path / "1"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_data_keeps_its_sentence(tmp_path, workers):
    """What a fetch says of a corrupt image arrives as it is, from a loading process too."""

    class Corrupt:
        def __len__(self):
            return 64

        def fetch(self, indices):
            raise UserError("zebra.png is damaged")

    with pytest.raises(UserError) as caught:
        go(Stub(), Corrupt(), tmp_path, workers=workers)
    assert str(caught.value) == "zebra.png is damaged"


def test_looking_changes_nothing(tmp_path):
    """Evaluation and samples see the average, draw numbers as they like, and leave no trace."""
    tiny, results, seen = replace(DMD, dropout=0.1), {}, []
    method, data = build(tiny)
    go(method, data, tmp_path / "plain", max_steps=6)
    results["plain"] = state(tmp_path / "plain")
    method, data = build(tiny)
    live = next(iter(method.roles["generator"].trainable().values()))

    def look(iteration=None):
        torch.rand(7)
        seen.append(live.detach().clone())
        return {"fid": 1.0}

    watched = {"evaluate": look, "draw_samples": look, "evaluate_every": 2, "sample_every": 3}
    result = go(method, data, tmp_path / "watched", max_steps=6, **watched)
    results["watched"] = state(tmp_path / "watched")
    assert same(*results.values())
    assert len(seen) == 5  # after 2, 3, 4, and twice after 6
    average = next(iter(result.ema.weights.values()))
    assert [torch.equal(value, average) for value in seen] == [False] * 3 + [True] * 2
    assert not torch.equal(live, average)
    assert result.metrics == {"fid": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [DMD, ECT], ids=["dmd2", "ect"])
def test_bf16_stays_close(tmp_path, tiny):
    """Autocast networks: all parameters learn, and end near those of float32, but not on them.

    ECT runs its network without and then with gradient, which torch's autocast cache spoils.
    """
    method, _ = build(tiny)
    start = {
        f"weights/{n}/{k}": p for n, r in method.roles.items() for k, p in r.trainable().items()
    }
    ends = []
    for bf16 in (False, True):
        run(replace(tiny, fit={"bf16": bf16}), tmp_path / str(bf16))
        ends.append(state(tmp_path / str(bf16)))
    moved = sum((ends[0][k] - p).square().sum() for k, p in start.items()).sqrt()
    apart = sum((ends[0][k] - ends[1][k]).square().sum() for k in start).sqrt()
    assert 0 < apart < 0.1 * moved
    assert {value.dtype for value in ends[1].values()} == {torch.float32}


# --- NaN, and other things that end a run -----------------------------------------------------


def poisoned(tiny, where, at):
    """A method or data with a NaN: in a sample, or in the generator's loss at iteration ``at``."""
    method, data = build(tiny)
    if where == "data":
        data.x0[:] = math.nan
        return method, data
    proper = method.generator_loss

    def generator_loss(batch):
        loss = proper(batch)
        if batch.draws.iteration != at or (where == "first" and 0 not in batch.draws.shards):
            return loss
        if where == "gradient":
            weight = next(iter(method.generator.trainable().values()))
            return Loss(loss.value + (weight - weight.detach()).abs().pow(0.5).sum(), loss.logs)
        term = next(iter(loss.logs))
        return Loss(loss.value * math.inf, {**loss.logs, term: loss.logs[term] * math.inf})

    method.generator_loss = generator_loss
    return method, data


CASES = [
    (
        DMD,
        "data",
        5,
        "iteration 5 in the critic loss: its term.s. discriminator, training the critic",
    ),
    (
        ECT,
        "data",
        5,
        "iteration 5 in the generator loss: its term.s. consistency.*data of this batch",
    ),
    (
        DMD,
        "loss",
        6,
        "iteration 6 in the generator loss: its term.s. matching, training the generator",
    ),
    (DMD, "first", 6, "iteration 6 in the generator loss: its term.s. matching, training the gen"),
    (
        DMD,
        "gradient",
        6,
        "iteration 6 in the generator loss: its gradient .all terms of this process are finite",
    ),
]


@pytest.mark.parametrize(("tiny", "where", "at", "message"), CASES)
def test_nan_stops_before_anything_is_stepped(tmp_path, tiny, where, at, message):
    """NaN or Inf: step, term and role are named; no weight has moved, no file of before either.

    "first" is a NaN in the first of two micro-batches, "gradient" one that no loss shows.
    """
    settings = {"max_steps": 8, "save_every": 4, "accumulate": 2}
    run(replace(tiny, fit={**settings, "max_steps": 4}), tmp_path)
    files = digest(tmp_path / "checkpoints")
    method, data = poisoned(tiny, where, at)
    with pytest.raises(NonFiniteError, match=message) as caught:
        go(method, data, tmp_path, **settings)
    assert caught.value.exit_code == 3
    assert digest(tmp_path / "checkpoints") == files
    assert saved(tmp_path) == ["000004"]
    assert [line["iteration"] for line in history(tmp_path)] == list(range(1, at))
    stopped = {n: [p.detach() for p in r.trainable().values()] for n, r in method.roles.items()}
    assert all(value.isfinite().all() for role in stopped.values() for value in role)
    if at == 5:  # nothing since the checkpoint: the weights are the checkpoint's
        stored = state(tmp_path)
        for name, role in method.roles.items():
            for key, p in role.trainable().items():
                assert torch.equal(p, stored[f"weights/{name}/{key}"])


def test_nan_exits_with_3(tmp_path, capsys):
    """As a command: one sentence on stderr and exit code 3."""
    method, data = poisoned(ECT, "data", 1)
    with pytest.raises(SystemExit) as left:
        guarded(lambda: go(method, data, tmp_path))
    assert left.value.code == 3
    assert capsys.readouterr().err.startswith("error: NaN or Inf at iteration 1")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_steps", 0),
        ("batch_size", 0),
        ("batch_size", -8),
        ("accumulate", 0),
        ("shards", 0),
        ("log_every", 0),
        ("save_every", 0),
        ("keep", 0),
        ("grad_clip", 0.0),
        ("grad_clip", math.nan),
        ("lr_warmup", -1),
        ("lr_decay", -1),
        ("lr_end", -0.1),
        ("lr_end", 1.1),
        ("ema_half_life", -1.0),
        ("ema_rampup", -0.1),
        ("weight_decay", -0.1),
        ("workers", -1),
        ("evaluate_every", -1),
        ("stop_after", -1),
        ("stop_margin", -0.1),
        ("stop_margin", 1.0),
        ("diversity_alarm", -0.1),
        ("betas", (0.9, 1.0)),
    ],
)
def test_settings_that_cannot_run(setting, value):
    """Each is refused when the config is made, naming itself."""
    with pytest.raises(UserError, match=setting):
        FitConfig(**{setting: value})


def test_methods_and_data_that_cannot_run(tmp_path):
    """Empty data, a rate of zero, no critic steps, no whole shards: before any folder is made."""
    method = Stub()
    with pytest.raises(UserError, match="data is empty"):
        go(method, numbers(0), tmp_path / "run")
    with pytest.raises(UserError, match="accumulate=5 must divide"):
        go(method, numbers(), tmp_path / "run", accumulate=5)
    method.learning_rates["head"] = 0.0
    with pytest.raises(UserError, match="learning rate of the head"):
        go(method, numbers(), tmp_path / "run")
    with pytest.raises(UserError, match="critic_steps must be at least 1"):
        go(Stub(0), numbers(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_out_of_memory_is_explained(tmp_path, monkeypatch):
    """torch.OutOfMemoryError becomes the estimate, by role and update, and what lowers it."""
    real = DMD2.critic_loss

    def critic_loss(self, batch):
        if not batch.x0.is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(DMD2, "critic_loss", critic_loss)
    method, data = build(DMD)
    with pytest.raises(StepDistillError) as caught:
        go(method, data, tmp_path)
    message = str(caught.value)
    for said in ("GiB", "generator", "batch_size=8", "accumulate", "--lora.rank"):
        assert said in message
    for said in ("bf16=true", "memory.gradient_checkpointing", "GiB in the generator update"):
        assert said in message
    assert caught.value.exit_code == 1
    RunFolder(tmp_path).__enter__()  # the folder is free again


def test_the_estimate_never_hides_that_memory_ran_out(tmp_path):
    """A method that cannot be rehearsed: the sentence comes all the same, without the peak."""
    method = Stub()
    with (
        pytest.raises(StepDistillError, match=r"moments alone take .*plus activations"),
        out_of_memory_explained(method, numbers(), FitConfig(batch_size=8), Accelerator(cpu=True)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_estimate_of_a_live_method_is_that_of_its_meta_twin(tmp_path):
    """Weights of roles and teacher once each, two moments a role, and the generator's average."""
    method, data = build(DMD)
    found = estimate(method, data, FitConfig(batch_size=8), 1, "cpu")
    assert found.problem == ""
    size = {name: sum(4 * p.numel() for p in role.trainable().values())
            for name, role in method.roles.items()}  # fmt: skip
    teacher = sum(b.numel() * b.element_size() for b in method.real.buffers())  # an exact mixture
    assert found.resident == teacher + 3 * sum(size.values()) + size["generator"]
    assert found.updates["critic"] > size["critic"] + size["head"]
    assert found.updates["generator"] > size["generator"]
    assert all(not p.is_meta for role in method.roles.values() for p in role.module.parameters())


class EightBit(torch.optim.Optimizer):
    """Stands for bitsandbytes' AdamW8bit, which counts its steps in a plain number."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("state1", torch.zeros(p.shape, dtype=torch.uint8))
                state["step"] = state.get("step", 0) + 1
                assert isinstance(state["step"], int)
                p.add_(p.grad.sign(), alpha=-group["lr"] / state["step"])


def test_eight_bit_moments(tmp_path, monkeypatch):
    """A sentence where bitsandbytes is missing; with it, a resumed run equals a straight one."""
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match="adam_8bit needs bitsandbytes, which is not installed"):
            FitConfig(adam_8bit=True)
    optim = types.SimpleNamespace(AdamW8bit=EightBit)
    package = types.ModuleType("bitsandbytes")
    package.__spec__ = importlib.util.spec_from_loader("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    found = []
    for folder, stops in (("straight", (4,)), ("resumed", (2, 4))):
        for stop in stops:
            method, data = build(DMD)
            go(method, data, tmp_path / folder, max_steps=stop, adam_8bit=True)
        found.append([p.clone() for p in method.roles["generator"].trainable().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_launch_that_accelerate_does_not_see(tmp_path, monkeypatch):
    """Two processes without a GPU and without --cpu would be two runs of one folder: refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"one of 2 processes, but accelerate sees 1.*--cpu"):
        go(Stub(), numbers(), tmp_path)


def test_metrics_lines(tmp_path):
    """A line a logged step and one an evaluation: terms, norms a role, throughput, memory."""
    run(replace(DMD, fit={"log_every": 2, "max_steps": 5, "evaluate_every": 4}), tmp_path,
        evaluate=lambda: {"fid": 2.0, "diversity": 0.5})  # fmt: skip
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [2, 4, 4, 5, 5]
    evaluated = {"eval/fid": 2.0, "eval/diversity": 0.5}
    assert lines[1].pop("eval/seconds") >= 0
    assert lines[1] == {"iteration": 4, **evaluated}
    critic = {"critic/loss", "critic/denoising", "critic/discriminator"}
    always = {"iteration", "critic/grad_norm", "head/grad_norm", "images_per_second", "memory_gb"}
    assert lines[0].keys() == critic | always
    terms = ("loss", "matching", "gan", "x0_mean", "x0_std", "grad_norm")
    assert lines[2].keys() == critic | always | {f"generator/{term}" for term in terms}
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert 0.01 < lines[0]["memory_gb"] < 64
    assert lines[0]["images_per_second"] > 0
    assert lines[2]["critic/loss"] != lines[0]["critic/loss"]
