"""Protocols: each end to end on tiny random models and extractors, against the numbers had by hand
from the images that the command wrote."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from commands import run
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusion3PAGPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from test_eval_whole import (
    by_clean_fid,
    by_torch_fidelity,
    distance,
    photographs,
    published,
    squares,
)
from test_extractors import fidelity as fidelity
from test_extractors import of_fidelity
from test_extractors import state_dict as state_dict
from test_fid_command import weights as weights
from test_image_commands import density_and_coverage
from test_readme import README
from test_scorers import Bare
from tiny import tiny_teacher_folder, tiny_unet
from tiny_clips import transformers_folder
from tiny_pipelines import image as tiny_images
from tiny_pipelines import video as tiny_videos
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.multimodal import CLIPScore
from torchvision.transforms.functional import center_crop
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from stepdistill.data.captioned_digits import Caption
from stepdistill.errors import UserError
from stepdistill.evaluation.measures.groups import GROUP, Groups
from stepdistill.evaluation.measures.image_metrics import Compared
from stepdistill.evaluation.measures.measure import Comparison, MeanScore, PromptDiversity
from stepdistill.evaluation.measures.views import View
from stepdistill.evaluation.models.prompt_files import prompts_in
from stepdistill.evaluation.models.subject import load_subject
from stepdistill.evaluation.models.told import labels_by_seed, prompts_in_turn
from stepdistill.evaluation.protocols import PROTOCOLS, find_protocol
from stepdistill.evaluation.reading.measuring import Measured
from stepdistill.evaluation.running.engine import Engine, Order
from stepdistill.evaluation.running.evaluation import groups_of
from stepdistill.evaluation.running.work import Shard, WorkFolder
from stepdistill.metrics.caption_quality import measure_captioned
from stepdistill.metrics.features import Features, Pixels
from stepdistill.metrics.frechet import Moments, Statistics
from stepdistill.metrics.metric_names import METRICS
from stepdistill.metrics.scorers.lpips_distance import ImageDistance
from stepdistill.students import load_student

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Run the command and read the record it wrote."""

    def command(model: object, protocol: str, *more: object) -> dict[str, Any]:
        output = tmp_path / "record.json"
        output.unlink(missing_ok=True)
        assert run("eval", model, "--protocol", protocol, "--output", output, *more) == 0
        record: dict[str, Any] = json.loads(output.read_text())
        return record

    return command


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion of 16x16 pixels."""
    folder = tmp_path_factory.mktemp("sd") / "sd15"
    tiny_images.sd15().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven prompts, one a line."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(f"a picture of number {i}" for i in range(7)))
    return file


def pixels_in(folder: Path) -> list[Pixels]:
    """All images of a folder by their names, in colour."""
    return [np.array(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir())]


def noise_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Real images of another size, as PNG."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


class Drawn:
    """What twelve random samples leave behind: ``measures.Evidence`` of any extractor."""

    num = 12

    def compared(self, view: View) -> Compared:
        draw = torch.Generator().manual_seed(0)
        rows = [torch.randn(12, 8, generator=draw) for _ in range(2)]
        sides = [Measured(Statistics.of(_moments(x)), {"path": ""}, x) for x in rows]
        seen = Features(view.key, 8, "", "RGB", torch.as_tensor, lambda x: x, logits=torch.eye(8))
        return Compared(sides[0], sides[1], seen, 0)

    def scores(self, scorer: str) -> Tensor:
        return torch.arange(12.0)

    def groups(self) -> Tensor:
        return torch.arange(3.0)


def _moments(rows: Tensor) -> Moments:
    moments = Moments()
    moments.add(rows)
    return moments


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_comparison_knows_every_value_of_a_protocol(name: str) -> None:
    """Whatever it may write into a record has a direction and a convention in ``eval compare``, its
    minimum too; and its default is among what may be asked for."""
    protocol = find_protocol(name)
    assert protocol.name == name
    assert set(protocol.default) <= set(protocol.measures)
    values: set[str] = set()
    for measure in protocol.measures.values():
        if isinstance(measure, (Comparison, MeanScore, PromptDiversity)):
            values |= measure.values(Drawn()).keys()
        else:  # of the built-in worlds, which have one value each
            values.add(measure.name)
    if protocol.minimum_of > 1:
        values.add(f"fid_min_of_{protocol.minimum_of}")
    assert values <= METRICS.keys()
    assert "precision_recall" not in protocol.measures or {"precision", "recall"} <= values


def test_the_readme_lists_every_protocol() -> None:
    """Each with its count of samples, and none that is not there."""
    listed = {}
    for row in re.findall(r"^\| (`.*)\|$", README.split("| protocol | samples |")[1], re.MULTILINE):
        names, counts, *_ = (cell.strip() for cell in row.split("|"))
        found = re.findall(r"`([^`]+)`", names)
        each = counts.split("; ") if ";" in counts else [counts] * len(found)
        listed |= dict(zip(found, each, strict=True))
        if len(listed) == len(PROTOCOLS):
            break
    own = {name: find_protocol(name).num for name in PROTOCOLS}
    assert listed == {n: "yours" if count is None else f"{count:,}" for n, count in own.items()}


@pytest.mark.slow
def test_edm_and_the_least_of_three(weights: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    """CIFAR-10's: TensorFlow's resize by torch-fidelity, classes by image seed, the single value
    and the minimum."""
    model = tiny_teacher_folder(
        tmp_path / "model", sample_size=32, in_channels=3, out_channels=3, num_class_embeds=11
    )
    real = by_torch_fidelity(weights, pixels_in(noise_images(tmp_path / "real", 30, (32, 32))))
    reference = published(tmp_path / "cifar10-32x32.npz", real)
    given = ("--reference", reference, "--weights", f"inception-tf={weights}", "--num", 10)
    more = ("--steps", 2, "--repeats", 3, "--images", tmp_path / "images")
    record = evaluate(model, "cifar10-edm", *given, *more)
    own = by_torch_fidelity(weights, pixels_in(tmp_path / "images"))
    values = [distance(own[10 * i : 10 * i + 10], real) for i in range(3)]
    assert [one["fid"] for one in record["per_seed"]] == pytest.approx(values, rel=1e-5)
    assert record["metrics"]["fid"] == record["per_seed"][0]["fid"]
    assert record["metrics"]["fid_min_of_3"] == min(one["fid"] for one in record["per_seed"])
    assert any("rank 9 at most" in note for note in record["notes"])
    assert any("not the published file" in note for note in record["notes"])
    resize = "to 299x299, TensorFlow 1's bilinear, no antialiasing (StyleGAN, EDM, ADM)"
    assert record["extractors"]["inception-tf"]["resize"] == resize


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_edm_is_what_torch_fidelity_measures(
    state_dict: Path, fidelity: Any, tmp_path: Path, evaluate: Evaluate
) -> None:
    """Inception itself with random weights: torch-fidelity's features of the saved images, its
    moments in the reference file, and its Frechet distance."""
    model = tiny_teacher_folder(
        tmp_path / "model", sample_size=32, in_channels=3, out_channels=3, num_class_embeds=11
    )
    real = pixels_in(photographs(tmp_path / "real", [(32, 32)] * 12))
    theirs = fid_features_to_statistics(of_fidelity(fidelity, real)[0].double())
    np.savez(tmp_path / "cifar10-32x32.npz", **theirs)
    given = ("--reference", tmp_path / "cifar10-32x32.npz", "--num", 8, "--steps", 2)
    more = ("--weights", f"inception-tf={state_dict}", "--images", tmp_path / "images")
    record = evaluate(model, "cifar10-edm", *given, *more)
    own = of_fidelity(fidelity, pixels_in(tmp_path / "images"))[0].double()
    found = fid_statistics_to_metric(fid_features_to_statistics(own), theirs, verbose=False)
    expected = found["frechet_inception_distance"]
    assert record["metrics"]["fid"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_text_to_image_resizes_and_crops(
    weights: Path, tmp_path: Path, text_model: Path, prompts: Path, evaluate: Evaluate
) -> None:
    """DMD2's SDXL protocol: both sides square at 512 pixels for the distance, their centre of 299
    pixels, or all of a smaller image, for the patches'. Each value by clean-fid's features of what
    PIL makes of the images; with equal counts a subset of KID is all of them."""
    real, images = noise_images(tmp_path / "real", 9, (20, 28)), tmp_path / "images"
    seen = load_subject(str(text_model), steps=2).sample(["a picture"] * 5, range(500, 505))
    for i, x0 in enumerate(seen):  # some that are like the samples, so that no share is 0
        pixels = ((x0.clamp(-1, 1) + 1) * 125).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((28, 20), Image.Resampling.BICUBIC).save(real / f"{i}.png")
    given = ("--reference", real, "--weights", f"inception={weights}", "--prompts", prompts)
    more = ("--steps", 2, "--num", 9, "--metrics", "fid", "patch_fid", "kid", "precision_recall")
    more = (*more, "density_coverage")
    record = evaluate(text_model, "coco10k-sdxl", *given, *more, "--images", images)
    large = [squares(folder, tmp_path / f"{folder.name}512", 512) for folder in (images, real)]
    own, theirs = (by_clean_fid(weights, folder) for folder in large)
    x, y = torch.from_numpy(own), torch.from_numpy(theirs)
    kid = kid_features_to_metric(x, y, kid_subsets=2, kid_subset_size=9, verbose=False)
    near = prc_features_to_metric(
        x, y, prc_neighborhood=3, prc_batch_size=4, save_cpu_ram=False, verbose=False
    )
    density, coverage = density_and_coverage(x, y)
    expected = {
        "fid": distance(own, theirs),
        # 299 pixels hold all of these
        "patch_fid": distance(*(by_clean_fid(weights, folder) for folder in (images, real))),
        "kid": kid["kernel_inception_distance_mean"],
        "precision": near["precision"],
        "recall": near["recall"],
        "density": density,
        "coverage": coverage,
    }
    assert record["metrics"] == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    assert all(expected[name] > 0 for name in ("precision", "recall", "density", "coverage"))
    words = record["extractors"]["inception-512px"]["resize"]
    assert words.startswith("centre square, LANCZOS to 512; to 299x299, antialiased bicubic")
    words = record["extractors"]["inception-crop299"]["resize"]
    assert words.startswith("centre crop to 299; to 299x299, antialiased bicubic")
    assert record["sampling"]["told"] == "7 prompts in turn"
    assert record["sampling"]["guidance_scale"] == 7.5
    assert record["model"]["role"] == "teacher"


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_prompts(
    sign: int, weights: Path, tmp_path: Path, text_model: Path, prompts: Path, evaluate: Evaluate
) -> None:
    """torchmetrics' form of COCO: what its own CLIPScore says of the saved images and their
    prompts, and the standard error of the mean before it clips that at 0: cosines are of either
    ``sign`` here."""
    clip = transformers_folder(tmp_path / "clip")
    model = Bare.from_pretrained(clip).eval()
    model.visual_projection.weight.data.mul_(-sign)
    model.save_pretrained(clip)
    real = noise_images(tmp_path / "real", 6, (20, 20))
    given = ("--reference", real, "--prompts", prompts, "--steps", 1, "--num", 9)
    files = ("--weights", f"inception-tf={weights}", f"clip-torchmetrics={clip}")
    record = evaluate(
        text_model, "coco2014-30k-torchmetrics", *given, *files, "--images", tmp_path / "images"
    )
    told = (prompts.read_text().splitlines() * 2)[:9]
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(clip), tokenizer)
    metric, each = CLIPScore(lambda: (model, processor)), []
    images = [torch.from_numpy(p).permute(2, 0, 1) for p in pixels_in(tmp_path / "images")]
    for image, prompt in zip(images, told, strict=True):
        metric.reset()
        metric.update(image, prompt)
        each.append(float(metric.score))
    metric.reset()
    metric.update(images, told)
    name = "clip_score_torchmetrics"
    assert record["metrics"][name] == pytest.approx(float(metric.compute()), rel=1e-5)
    assert np.mean(each) * sign > 1
    assert record["errors"][name] == pytest.approx(float(np.std(each, ddof=1)) / 3, rel=1e-4)
    assert "clip-torchmetrics" in record["extractors"]
    assert any("no hash of the protocol's prompts" in note for note in record["notes"])


def test_moments_alone_are_not_enough_for_kid(
    weights: Path,
    tmp_path: Path,
    text_model: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reference without features is refused before anything is sampled; so is another's."""
    np.savez(tmp_path / "moments.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "other.npz", mu=np.zeros(64), sigma=np.eye(64))
    fixed = ("--protocol", "custom", "--prompts", prompts, "--output", tmp_path / "o.json")
    given = ("--weights", f"inception={weights}", "--reference")
    moments = (*given, tmp_path / "moments.npz", "--metrics", "fid", "kid")
    assert run("eval", text_model, *fixed, *moments) == 2
    assert "moments.npz holds a mean and a covariance alone" in capsys.readouterr().err
    assert run("eval", text_model, *fixed, *given, tmp_path / "other.npz") == 2
    assert "statistics of 64 features, and inception has 2048" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.png"))


def test_missing_files_are_named(
    text_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offline without the protocol's prompts: which file, from where, named by what."""
    monkeypatch.delenv("STEPDISTILL_COCO2014_PROMPTS", raising=False)
    fixed = ("--protocol", "coco2014-30k", "--output", tmp_path / "o.json")
    assert run("eval", text_model, *fixed) == 2
    said = capsys.readouterr().err
    assert "captions_coco14_test.txt" in said
    assert "--prompts" in said
    assert "STEPDISTILL_COCO2014_PROMPTS" in said


def test_someone_elses_pipeline(
    weights: Path, tmp_path: Path, prompts: Path, evaluate: Evaluate
) -> None:
    """A pipeline class without an adapter is called as its users call it: its own steps, each image
    by its seed whatever the batch."""
    parts = tiny_images.sd15().components
    torch.manual_seed(0)
    config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")}
    parts["unet"] = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 32}).eval()
    parts["scheduler"] = LCMScheduler(beta_start=0.00085, beta_end=0.012)
    parts.pop("image_encoder", None)
    pipeline = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "lcm")
    real = noise_images(tmp_path / "real", 4, (16, 16))
    given = ("--reference", real, "--weights", f"inception={weights}", "--prompts", prompts)
    for size in (1, 5):
        more = ("--num", 5, "--batch_size", size, "--images", tmp_path / f"images{size}")
        record = evaluate(tmp_path / "lcm", "custom", *given, *more)
        assert record["model"]["role"] == "other"
        assert record["model"]["pipeline"] == "LatentConsistencyModelPipeline"
        assert record["sampling"]["steps"] == record["sampling"]["calls"] == 4
    one, five = (np.stack(pixels_in(tmp_path / f"images{n}")).astype(int) for n in (1, 5))
    assert np.abs(one - five).max() <= 1
    by_hand = pipeline(
        [prompts.read_text().splitlines()[1]],
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]
    assert np.abs(one[1] - by_hand * 255).max() <= 1


def test_someone_elses_pipeline_that_draws_for_all(
    weights: Path, tmp_path: Path, prompts: Path, evaluate: Evaluate
) -> None:
    """Where later noise comes from torch's own generator, each image is its seed's all the same."""
    parts = tiny_images.sd3().components
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.0"]).save_pretrained(
        tmp_path / "pag"
    )
    real = noise_images(tmp_path / "real", 4, (16, 16))
    given = ("--reference", real, "--weights", f"inception={weights}", "--prompts", prompts)
    found = {}
    for size in (1, 3):
        more = ("--num", 3, "--steps", 3, "--batch_size", size)
        folder = tmp_path / f"images{size}"
        torch.manual_seed(size)
        record = evaluate(tmp_path / "pag", "custom", *given, *more, "--images", folder)
        assert record["model"]["role"] == "other"
        found[size] = np.stack(pixels_in(folder)).astype(int)
    assert np.abs(found[1] - found[3]).max() <= 1


def test_someone_elses_unconditional_pipeline(
    weights: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """Of noise alone: the pipeline is told how many."""
    unet = tiny_unet(in_channels=3, out_channels=3, num_class_embeds=None)
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    real = noise_images(tmp_path / "real", 4, (8, 8))
    given = ("--reference", real, "--weights", f"inception={weights}", "--num", 3, "--steps", 2)
    record = evaluate(tmp_path / "ddim", "custom", *given)
    assert record["sampling"]["told"] == "nothing"
    assert record["sampling"]["told_sha256"] is None


def test_a_model_that_goes_on_from_a_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Image-to-video models are sampled by their owner too."""
    tiny_videos.wan_i2v().save_pretrained(tmp_path / "i2v")
    fixed = ("--protocol", "custom", "--num", 4, "--output", tmp_path / "o.json")
    assert run("eval", tmp_path / "i2v", *fixed) == 2
    assert "goes on from a first frame" in capsys.readouterr().err


def test_a_pipeline_that_needs_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that edits pictures is sampled by its owner, and measured as a folder."""
    from diffusers import StableDiffusionInpaintPipeline

    parts = tiny_images.sd15().components
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "inpaint")
    fixed = ("--protocol", "custom", "--num", 4, "--output", tmp_path / "o.json")
    assert run("eval", tmp_path / "inpaint", *fixed) == 2
    assert "is told image, mask_image" in capsys.readouterr().err


@pytest.mark.slow
def test_captioned_digits_are_measured_as_in_training(evaluate: Evaluate) -> None:
    """The built-in text-to-image protocol is ``measure_captioned`` of the same calls."""
    num, seed = 1_000, 5
    record = evaluate("digits-t2i", "captioned-digits", "--num", num, "--steps", 1, "--seed", seed)
    model = load_student(Path("stepdistill/worlds/digits-t2i/teacher"))

    def sampler(told: list[Caption], seeds: range) -> Tensor:
        return model.sample([caption.text for caption in told], seeds, 1)

    quality = measure_captioned(sampler, num, seed)
    assert record["metrics"]["fid"] == pytest.approx(quality.fid, rel=1e-4)
    assert record["metrics"]["caption_accuracy"] == pytest.approx(quality.caption_accuracy, abs=0.2)
    assert record["metrics"]["diversity"] == pytest.approx(quality.diversity, rel=1e-4)


def test_samples_of_one_prompt_and_their_distance(text_model: Path, tmp_path: Path) -> None:
    """Each group is one prompt with seeds after all others'; its value is the mean over pairs."""

    def prepare(pixels: Pixels) -> Tensor:
        return torch.from_numpy(pixels).float()

    def difference(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().flatten(1).mean(1)

    distance = ImageDistance("difference", "", prepare, difference)
    subject = load_subject(str(text_model), steps=1)
    told = prompts_in_turn(["one", "two"])
    order = Order(4, 10, 1, 4, told, {}, {}, None, tmp_path / "samples", 0)
    groups = Groups([0, 1], 3, distance, Shard(0, 0, 0, 4))
    work = WorkFolder(tmp_path / "work")
    with work.held({}):
        assert Engine(subject, order, work, PartialState(cpu=True), groups).run(groups.shards())
    for i, prompt in enumerate(("one", "two")):
        seeds = range(10 + 4 + 3 * i, 10 + 4 + 3 * i + 3)
        x0 = subject.model.sample([prompt] * 3, seeds, 1, batch_size=3)
        images = ((x0.clamp(-1, 1) + 1) * 127.5).round()
        pairs = [(images[a] - images[b]).abs().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
        expected = float(torch.stack(pairs).mean())
        assert float(work.read(1 + i, GROUP)) == pytest.approx(expected, rel=1e-6)


def test_groups_are_of_distinct_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that comes twice is one group, at its first place."""
    monkeypatch.setattr(f"{groups_of.__module__}.lpips_distance", lambda *_: None)
    told = prompts_in_turn(["one", "one", "two"])
    order = Order(6, 0, 1, 4, told, {}, {}, None, tmp_path / "samples", 0)
    groups = groups_of([PromptDiversity("lpips_diversity", "")], order, {}, torch.device("cpu"))
    assert groups is not None
    assert [groups.place(shard) for shard in groups.shards()] == [0, 2]


def test_classes_by_seed_are_even(tmp_path: Path) -> None:
    """Drawn by the image's own seed, uniformly: chi-squared of 10,000 within its range."""
    told = labels_by_seed(10)
    assert told.of is not None
    drawn = [told.of(0, seed) for seed in range(10_000)]
    counts = np.bincount(drawn, minlength=10)
    assert ((counts - 1000) ** 2 / 1000).sum() < 21.7  # 99 % of chi-squared with 9 degrees
    assert drawn[:50] == [told.of(7, seed) for seed in range(50)], "the place plays no part"


def test_prompts_of_older_evaluations(tmp_path: Path) -> None:
    """A pickled list of texts is read; what would run code, or is no such list, is refused."""
    file = tmp_path / "all_prompts.pkl"
    file.write_bytes(pickle.dumps(["a fox", "a car"]))
    assert prompts_in(str(file)) == ("a fox", "a car")
    file.write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(UserError, match=r"names pathlib\S*Path, and would run code"):
        prompts_in(str(file))
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="must hold a list of texts"):
        prompts_in(str(file))
    file.write_bytes(pickle.dumps(["a fox"])[:-3])
    with pytest.raises(UserError, match="no pickled list of prompts"):
        prompts_in(str(file))


def test_unknown_protocols() -> None:
    """The nearest is named, and all there are."""
    with pytest.raises(UserError, match="Did you mean coco2014-30k"):
        find_protocol("coco2014-30K")


def test_a_patch_is_the_middle(weights: Path) -> None:
    """Of images larger than 299 pixels the centre as torchvision crops it, not resized."""
    draw = np.random.default_rng(0)
    images = [
        draw.integers(0, 256, size, dtype=np.uint8) for size in ((400, 360, 3), (301, 512, 3))
    ]
    cropped = [np.array(center_crop(Image.fromarray(pixels), [299, 299])) for pixels in images]
    own = View("inception", crop=299).open(str(weights), "cpu").of_pixels(images)
    assert torch.equal(own, View("inception").open(str(weights), "cpu").of_pixels(cropped))
