"""DisBack: the way a teacher is made worse, the way back over its states, and what it wraps."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from run_tiny import same, state
from safetensors.torch import load_file, save_file
from tiny import tiny_teacher, tiny_teacher_folder
from torch import Tensor, nn

from stepdistill.backbones.exact import GaussianMixture
from stepdistill.cells import tasks
from stepdistill.conditioning import Conditioning
from stepdistill.data import TensorData
from stepdistill.denoisers import Denoiser, Prediction
from stepdistill.discriminator import TeacherTrunk, build_head
from stepdistill.distil import build_method, degradation, read_settings, read_teacher
from stepdistill.draws import Draws
from stepdistill.fit import FitConfig, fit
from stepdistill.footprint import parts_of
from stepdistill.methods import DMD2, METHODS, Batch, DMD2Config
from stepdistill.methods.disback import Backtracking, Degradation, StateFile, index_at
from stepdistill.methods.matching import Matching
from stepdistill.plans import StepPlan
from stepdistill.roles import LoRAOptions, Role
from stepdistill.schedules import FlowSchedule, expand_like
from stepdistill.teachers import Teacher

FAMILY = [name for name, kind in METHODS.items() if issubclass(kind, Matching)]
M, S, A, B = 1.5, 0.6, -1.0, 0.9  # teacher N(M, S^2), the untrained generator's samples N(A, B^2)
SCHEDULE = FlowSchedule()


# --- in one dimension ---------------------------------------------------------------------------


class Gaussian(nn.Module):
    """The exact denoiser of N(mean, std^2), both of which can be learned."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.schedule = SCHEDULE
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor(math.log(std), dtype=torch.float64))

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        alpha, sigma = (expand_like(x, x_t) for x in SCHEDULE(t))
        variance = (2 * self.log_std).exp()
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return Prediction(self.mean + gain * (x_t - alpha * self.mean))

    def loss_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Line(Gaussian):
    """x0 = mean + std z, whatever the time."""

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, *, features: bool = False
    ) -> Prediction:
        return Prediction(self.mean + self.log_std.exp() * x_t)


def in_one_dimension() -> DMD2:
    """A student of samples N(A, B^2); the critic starts as the teacher."""
    teacher = GaussianMixture(SCHEDULE, torch.tensor([[M]]), torch.tensor([[S]]))
    return DMD2(
        Role("generator", Line(A, B)),
        Role("critic", Gaussian(M, S)),
        teacher,  # type: ignore[arg-type]
        StepPlan(),
        DMD2Config(gan_weight=0.0),
        sample_shape=(1,),
    )


def test_the_degradation_leads_from_the_teacher_to_the_generators_samples(tmp_path: Path) -> None:
    """The means of s'_1, ..., s'_N fall from m to a, none of them beyond; G does not move."""
    method = in_one_dimension()
    found: list[tuple[float, float]] = []

    def keep(iteration: int, *_: object) -> None:
        if iteration % 40 == 0:
            own = method.critic.module
            found.append((own.mean.item(), own.log_std.exp().item()))

    config = FitConfig(
        max_steps=600, batch_size=512, shards=1, betas=(0.0, 0.99), weight_decay=0.0, save_every=600
    )
    data = TensorData(None, Conditioning.empty(64))
    torch.set_default_dtype(torch.float64)
    try:
        fit(Degradation(method, 2e-2), data, config, tmp_path, hooks=[keep])
    finally:
        torch.set_default_dtype(torch.float32)
    means = [M, *(mean for mean, _ in found)]
    moving = [mean for mean in means if mean > A + 0.1]
    assert len(moving) > 4
    assert moving == sorted(moving, reverse=True)
    assert found[-1] == pytest.approx((A, B), abs=0.1)
    assert method.generator.module.mean.item() == A


def test_exact_scores_lead_the_generator_back_along_the_states_to_the_teacher() -> None:
    """In the turn of s'_k the samples come to its mean, and at last to m."""
    method = in_one_dimension()
    states = [(M + (A - M) * k / 4, S + (B - S) * k / 4) for k in range(1, 5)]

    def read(mean: float, std: float) -> Callable[[], dict[str, Tensor]]:
        return lambda: {"mean": torch.tensor(mean), "log_std": torch.tensor(math.log(std))}

    interval = 200
    teacher: Any = method.teacher
    path = Backtracking(teacher, method.critic, [read(*own) for own in states], interval)
    method.path = path
    path.start()
    assert method.critic.module.mean.item() == pytest.approx(A)
    generator, critic = method.generator.module, method.critic.module
    reached = []
    for iteration in range(1, 5 * interval + 1):
        with torch.no_grad():  # the exact critic
            critic.mean.copy_(generator.mean)
            critic.log_std.copy_(generator.log_std)
        draws = Draws(0, iteration, "generator")
        loss = method.generator_loss(Batch(None, Conditioning.empty(256), draws))
        gradients = torch.autograd.grad(loss.value, [generator.mean, generator.log_std])
        with torch.no_grad():
            for own, gradient in zip((generator.mean, generator.log_std), gradients, strict=True):
                own -= 0.05 * gradient
        if iteration % interval == 0:
            reached.append(generator.mean.item())
    wanted = [mean for mean, _ in states[2::-1]]
    assert reached == pytest.approx([*wanted, M, M], abs=0.05)
    assert generator.log_std.exp().item() == pytest.approx(S, abs=0.1)


# --- the sequence -------------------------------------------------------------------------------


def vectors(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def numbered(states: int, interval: int) -> Backtracking:
    """s'_k has the weight k, the teacher 0; the critic starts as the teacher."""
    reads = [lambda k=k: {"weight": torch.full((1, 1), float(k))} for k in range(1, states + 1)]
    teacher: Any = vectors(0.0)
    return Backtracking(teacher, Role("critic", vectors(0.0)), reads, interval)


def test_the_states_are_visited_backwards_and_the_teacher_stays() -> None:
    """N = 4, interval 3: s'_3 in 1 to 3, s'_2 to 6, s'_1 to 9, and the teacher, which is s'_0."""
    path = numbered(4, 3)
    visited = [path.at(i).weight.item() for i in range(1, 16)]  # type: ignore[union-attr]
    assert visited == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert path.at(10**9) is path.teacher
    assert [index_at(i, 1, 3) for i in (1, 2, 3, 4)] == [0, 0, 0, 0]
    path.start()
    assert path.critic.module.weight.item() == 4


def test_whose_turn_it_is_depends_on_the_iteration_alone() -> None:
    """In any order, and where a run goes on in the middle."""
    path = numbered(3, 2)
    visited = [path.at(i).weight.item() for i in (9, 1, 4, 2, 5, 3)]  # type: ignore[union-attr]
    assert visited == [0, 2, 1, 2, 0, 1]
    assert not path.at(1).weight.requires_grad  # type: ignore[union-attr]
    assert path.critic.module.weight.item() == 0


# --- what it wraps ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A random class-conditional model with a null class."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def built(name: str, teacher: Teacher, lora: LoRAOptions | None = None, **own: Any) -> Any:
    """A method of the family as the programs build it, guided where it is by default or can be."""
    kind = METHODS[name]
    own |= {"forget": ("1",)} if name == "sfd" else {}
    own |= {} if name == "snoopi" else {"guidance_scale": 1.5}
    torch.manual_seed(0)
    return kind.from_teacher(teacher, StepPlan(), kind.Config(**own), lora or LoRAOptions())


def batch(teacher: Teacher, purpose: str, iteration: int = 1) -> Batch:
    x0, z = torch.randn(2, 4, *teacher.sample_shape, generator=torch.Generator().manual_seed(1))
    return Batch(x0, teacher.encode([1, 2, 3, 4]), Draws(0, iteration, purpose), z)


class Always:
    """A path that is one denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.asked = denoiser, list[int]()

    def at(self, iteration: int) -> Denoiser:
        self.asked.append(iteration)
        return self.denoiser

    def copied(self) -> list[Tensor]:
        return []


def gradients(method: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(method.generator.trainable().values())))


@pytest.mark.parametrize("name", FAMILY)
def test_each_method_asks_the_path_for_its_real_score(name: str, teacher: Teacher) -> None:
    """A path that is the teacher changes nothing, to the last bit; another network does."""
    method = built(name, teacher)
    before = method.generator_loss(batch(teacher, "generator", 7)).value
    plain = gradients(method, before)
    method.path = same_one = Always(teacher.denoiser)
    after = method.generator_loss(batch(teacher, "generator", 7)).value
    assert set(same_one.asked) == {7}
    assert torch.equal(before, after)
    assert all(map(torch.equal, plain, gradients(method, after)))
    other = method.critic.standing()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    method.path = Always(other)
    moved = gradients(method, method.generator_loss(batch(teacher, "generator", 7)).value)
    assert all(g.isfinite().all() for g in moved)
    assert not all(map(torch.equal, plain, moved))


@pytest.mark.parametrize("name", FAMILY)
def test_each_methods_critic_learns_the_degradation(name: str, teacher: Teacher) -> None:
    """The denoising term of the critic's own loss: finite gradients in it, and nowhere else."""
    method = built(name, teacher)
    method.critic_loss(batch(teacher, "critic"))  # the frozen views are made
    told = batch(teacher, "generator")
    loss = Degradation(method, 1e-3).generator_loss(told)
    loss.value.backward()
    for role, learns in ((method.critic, True), (method.generator, False)):
        for parameter in role.trainable().values():
            assert (parameter.grad is not None) == learns
            assert not learns or parameter.grad.isfinite().all()
    assert "discriminator" not in loss.logs
    if "head" in method.roles:
        assert all(p.grad is None for p in method.roles["head"].trainable().values())
        assert method.adversary is not None
        again = batch(teacher, "generator")
        expected = method.critic_loss(again)
        assert torch.equal(expected.logs["denoising"], loss.value.detach())


def test_a_teachers_discriminator_does_not_answer_for_the_path(teacher: Teacher) -> None:
    """Its pass makes the teacher's x0_hat, which is not the real score while there is a path."""
    method = built("dmd2", teacher, gan_own_noise=False)
    head = build_head(teacher.denoiser, teacher.sample_shape, teacher.probe())
    trunk = TeacherTrunk(head, teacher.denoiser, method.real)
    object.__setattr__(method.adversary, "discriminator", trunk)
    plain = method.generator_loss(batch(teacher, "generator")).logs["matching"]
    other = method.critic.standing()
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    method.path = Always(other)
    assert method.generator_loss(batch(teacher, "generator")).logs["matching"] != plain


# --- memory -------------------------------------------------------------------------------------


def storages(*modules: nn.Module) -> dict[int, int]:
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.parametrize("rank", [0, 2])
def test_one_state_at_a_time_is_in_memory(rank: int, teacher: Teacher) -> None:
    """Beside teacher and roles: what the critic trains, once; of a LoRA its adapters alone; and
    nothing once the teacher's turn has come. ``inspect`` counts the same."""
    method = built("dmd2", teacher, LoRAOptions(rank, targets=("time_emb_proj",) if rank else ()))
    trained = method.critic.trainable()
    weights = {name: own.detach().clone() for name, own in trained.items()}
    path = Backtracking(teacher.denoiser, method.critic, [lambda: weights] * 3, 5)
    method.path = path
    held = storages(teacher.denoiser, *(role.module for role in method.roles.values()))
    first, second = path.at(1), path.at(6)
    assert first is second
    more = storages(second).keys() - held.keys()
    size = sum(own.numel() * own.element_size() for own in trained.values())
    assert sum(storages(second)[key] for key in more) == size
    if rank:
        assert size < 0.2 * sum(storages(teacher.denoiser).values())
    parts = {part.name: part for part in parts_of(method, teacher.denoiser, FitConfig())}
    assert parts["way back"].weights == size
    assert path.at(11) is teacher.denoiser
    assert path._held is None
    path.states = path.states[:1]
    assert path.copied() == []


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher_folder(tmp_path_factory.mktemp("teacher") / "tiny")


pytestmark = pytest.mark.usefixtures("quick_runs")


def train(folder: Path, output: Path, *more: object, name: str = "disback") -> int:
    """Four states of two iterations each, then eight iterations, two for each state."""
    given = ["--teacher", folder, "--output", output, "--data", "digits", "--batch_size=8"]
    path = ["--path.iterations=8", "--path.every=2", "--path.interval=2", "--path.lr=1e-3"]
    return run("train", name, *given, "--max_steps=8", "--log_every=1", *path, *more)


def states(output: Path) -> list[dict[str, Tensor]]:
    files = sorted((output / "degradation" / "states").glob("*.safetensors"))
    return [load_file(file) for file in files]


class Killed(BaseException):
    """What a kill leaves on the disk, without one."""


def dying(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the process where ``place`` says, the first time it comes there."""
    cut, finish, rmtree = degradation._cut_states, degradation._finish, shutil.rmtree
    at = Backtracking.at

    def dying_cut(run: Any, own: Any) -> None:
        if place == "cut" and (run.checkpoints / "000004").exists():
            raise Killed
        cut(run, own)
        if place == "step" and (run.checkpoints / "000004").exists():
            raise Killed

    def dying_finish(*arguments: Any) -> None:
        if place == "finish":
            raise Killed
        finish(*arguments)

    def dying_rmtree(path: Path, **options: Any) -> None:
        if place == "clear" and Path(path).name == "checkpoints":
            raise Killed
        rmtree(path, **options)

    def dying_at(own: Backtracking, iteration: int) -> Denoiser:
        if place == "walk" and iteration == 4:
            raise Killed
        return at(own, iteration)

    monkeypatch.setattr(degradation, "_cut_states", dying_cut)
    monkeypatch.setattr(degradation, "_finish", dying_finish)
    monkeypatch.setattr(degradation.shutil, "rmtree", dying_rmtree)
    monkeypatch.setattr(Backtracking, "at", dying_at)


@pytest.mark.slow
def test_killed_and_gone_on_with_is_the_straight_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a checkpoint and its state, after a state, before and after path.json, on the way."""
    steps = ["--method.critic_steps=2", "--save_every=3"]
    assert train(folder, tmp_path / "whole", *steps) == 0
    killed = tmp_path / "killed"
    for place in ("cut", "step", "finish", "clear", "walk"):
        with pytest.MonkeyPatch.context() as patch:
            dying(place, patch)
            with pytest.raises(Killed):
                train(folder, killed, *steps)
        if place == "cut":  # what was cut before is there, and a torn file does not count
            assert len(states(killed)) == 1
            (killed / "degradation/states/000004.safetensors.partial").write_text("torn")
    assert train(folder, killed, *steps) == 0
    assert same(state(killed), state(tmp_path / "whole"))
    pairs = list(zip(states(killed), states(tmp_path / "whole"), strict=True))
    assert len(pairs) == 4
    assert all(same(a, b) for a, b in pairs)
    assert not (killed / "degradation/checkpoints").exists()


@pytest.mark.slow
def test_a_run_walks_the_states_that_it_has_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic starts as s'_N; at iterations 1, 3, 5 and 7 the real score changes; G is exported.

    The first state lies nearest to the teacher.
    """
    seen: dict[int, Any] = {}
    at, start = Backtracking.at, Backtracking.start

    def spying_at(own: Backtracking, iteration: int) -> Denoiser:
        found = at(own, iteration)
        seen[iteration] = {k: v.detach().clone() for k, v in found.named_parameters()}
        return found

    def spying_start(own: Backtracking) -> None:
        start(own)
        seen[0] = {k: v.detach().clone() for k, v in own.critic.trainable().items()}

    monkeypatch.setattr(Backtracking, "at", spying_at)
    monkeypatch.setattr(Backtracking, "start", spying_start)
    assert train(folder, tmp_path / "run", "--method.critic_steps=1") == 0
    recorded = states(tmp_path / "run")
    assert same(seen[0], recorded[3])
    for iteration, k in {1: 3, 2: 3, 3: 2, 4: 2, 5: 1, 6: 1}.items():
        assert same({n: seen[iteration][n] for n in recorded[k - 1]}, recorded[k - 1])
    settings = read_settings("dmd2", ["--teacher", str(folder), "--output", "x"])
    origin = dict(read_teacher(settings).denoiser.named_parameters())
    assert same(seen[7], origin)
    assert same(seen[8], origin)

    def distance(own: dict[str, Tensor]) -> float:
        return sum((own[n] - origin[n]).square().sum().item() for n in own)

    far = [distance(own) for own in recorded]
    assert 0 < far[0] == min(far)
    assert json.loads((tmp_path / "run/student/stepdistill.json").read_text())["iteration"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["disback", "vsd"])
def test_it_runs_dry_and_is_inspected(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two states, one of them walked back to; the memory's table tells of it."""
    assert train(folder, tmp_path / "run", "--dry_run", name=name) == 0
    assert "way back" in capsys.readouterr().out
    assert len(states(tmp_path / "run" / "dry_run")) == 2
    more = ["--method", name, "--path.iterations=200", "--json", "--device=cpu"]
    assert run("inspect", folder, *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert "problem" not in found
    sizes = {part["name"]: part for part in found["parts"]}
    assert sizes["way back"]["weights"] == sizes["critic"]["gradients"]


def refused(arguments: Sequence[object], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2, and one sentence with all of ``words``."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


def test_a_path_that_cannot_be_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers out of range, iterations that no state is of, a method without scores."""
    given = ["--teacher", folder, "--output", tmp_path / "run", "--data", "digits"]
    for more, words in (
        (["disback", "--path.iterations=250"], ("no multiple of path.every=100",)),
        (["disback", "--path.interval=0"], ("path.interval must be at least 1",)),
        (["fdiv", "--path.iterations=-1"], ("path.iterations must be at least 0",)),
        (["disback", "--path.lr=0"], ("learning rate", "above 0")),
        (["ect", "--path.iterations=100"], ("no option --path.iterations",)),
        (["ladd", "--path.every=100"], ("no option --path.every",)),
    ):
        refused(["train", more[0], *given, *more[1:]], capsys, *words)


@pytest.mark.slow
def test_another_recording_and_a_damaged_state_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any training. Another interval goes with the same recording."""
    output = tmp_path / "run"
    assert train(folder, output) == 0
    shutil.rmtree(output / "checkpoints")
    given = ["train", "disback", "--teacher", folder, "--output", output, "--data", "digits"]
    given += ["--batch_size=8", "--max_steps=2", "--path.iterations=8", "--path.every=2"]
    refused([*given, "--path.lr=2e-3"], capsys, "recorded with other settings", "path_lr")
    assert run(*given, "--path.lr=1e-3", "--path.interval=7") == 0
    shutil.rmtree(output / "checkpoints")
    file = output / "degradation/states/000008.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    refused([*given, "--path.lr=1e-3"], capsys, str(file), "is damaged")


def test_a_missing_state_ends_a_recording(tmp_path: Path) -> None:
    """StateFile names the file and the folder to remove."""
    file = tmp_path / "degradation/states/000008.safetensors"
    with pytest.raises(Exception, match=r"000008\.safetensors.*remove .*degradation"):
        StateFile(file)()
    file.parent.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, file)
    assert StateFile(file)()["a"].item() == 1


def test_without_a_path_there_is_none(folder: Path, tmp_path: Path) -> None:
    """DMD2 by default, and DisBack with path.iterations=0."""
    for name, more in (("dmd2", []), ("disback", ["--path.iterations=0"])):
        given = ["--teacher", str(folder), "--output", str(tmp_path / "run"), *more]
        settings = read_settings(name, given)
        method: Any = build_method(name, settings, read_teacher(settings))
        assert method.path is None


def test_a_comparison_counts_the_calls_of_the_degradation(folder: Path, tmp_path: Path) -> None:
    """A forward of G and three of s' a sample, before the calls of the base method's updates."""
    given = ["--teacher", str(folder), "--output", str(tmp_path / "run"), "--batch_size=8"]
    settings = read_settings("disback", [*given, "--path.iterations=30", "--path.every=10"])
    teacher = read_teacher(settings)
    method: Any = build_method("disback", settings, teacher)
    assert tasks._path_calls(method, teacher, settings) == 30 * 8 * (1 + 3)
    loop = settings.get(FitConfig)
    plain: Any = build_method("dmd2", read_settings("dmd2", given), teacher)
    assert tasks._path_calls(plain, teacher, read_settings("dmd2", given)) == 0
    assert tasks._calls(method, teacher, loop, False) == tasks._calls(plain, teacher, loop, False)
    assert isinstance(method.path, Backtracking)
