"""Which families there are, how another one is added, and what an unknown model gets."""

from __future__ import annotations

import importlib
import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from commands import run
from diffusers import DDIMPipeline, DiffusionPipeline, UNet2DModel
from tiny_pipelines import PIPELINES

from stepdistill import families
from stepdistill.backbones.ddpm import DDPMPixels
from stepdistill.backbones.family import Family, FamilyCard
from stepdistill.errors import UserError
from stepdistill.teachers import load_teacher

ROOT = Path(__file__).parent.parent


class DDIMPixels(DDPMPixels):
    """Someone else's adapter."""

    card = FamilyCard(
        name="their-ddim",
        task="unconditional",
        pipeline="DDIMPipeline",
        network="UNet2DModel",
        prediction="eps",
        scheduler="LCMScheduler",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDIMPipeline, which has no adapter of ours."""
    place = tmp_path_factory.mktemp("ddim") / "model"
    tiny = PIPELINES["ddpm"]()
    DDIMPipeline(tiny.unet, tiny.scheduler).save_pretrained(place)
    return place


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(families, "_registered", {})


def test_an_unknown_pipeline_gets_the_known_ones_and_the_guide(folder: Path) -> None:
    """The sentence names the pipeline, every known one and where to read on."""
    with pytest.raises(UserError) as caught:
        load_teacher(folder)
    said = str(caught.value)
    assert "is a DDIMPipeline, which is not supported" in said
    assert all(name in said for name in families.BUILT_IN)
    [guide] = re.findall(r"`python -m pydoc (\S+)`", said)
    assert "To write an adapter" in (importlib.import_module(guide).__doc__ or "")


def test_a_registered_family_loads(folder: Path, registry: None) -> None:
    """From then on its pipelines are teachers, and it is listed."""
    families.register(DDIMPixels())
    teacher = load_teacher(folder)
    assert teacher.family.card.name == "their-ddim"
    assert teacher.sample_shape == (3, 8, 8)
    assert "DDIMPipeline" in families.known()


def test_a_family_of_an_installed_package_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its entry point of the group stepdistill.families."""
    point = EntryPoint("ddim", f"{__name__}:DDIMPixels", "stepdistill.families")
    monkeypatch.setattr(families, "entry_points", lambda group: [point])
    assert load_teacher(folder).family.card.name == "their-ddim"


def test_every_built_in_family_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """``families --json`` lists each adapter; its classes exist in diffusers, names are unique."""
    import diffusers

    assert run("families", "--json") == 0
    cards = json.loads(capsys.readouterr().out)
    assert {card["pipeline"] for card in cards} == set(families.BUILT_IN)
    assert len({card["name"] for card in cards}) == len(cards)
    for card in cards:
        assert issubclass(getattr(diffusers, card["pipeline"]), DiffusionPipeline)
        assert hasattr(diffusers, card["network"])
        assert hasattr(diffusers, card["scheduler"])
        assert all(card.values())
    assert run("families") == 0
    listed = capsys.readouterr().out
    assert all(card["pipeline"] in listed for card in cards)


def test_adapters_are_small() -> None:
    """Median at most 120 lines; what they share is not counted, as it is no family's own."""
    modules = {module for module, _ in families.BUILT_IN.values()}
    backbones = ROOT / "stepdistill" / "backbones"
    lengths = sorted(len((backbones / f"{m}.py").read_text().splitlines()) for m in modules)
    assert lengths[len(lengths) // 2] <= 120, lengths


def test_a_class_conditional_ddpm_is_refused(tmp_path: Path) -> None:
    """Its stock pipeline would never pass the labels."""
    tiny = PIPELINES["ddpm"]()
    tiny.unet = UNet2DModel(**{**tiny.unet.config, "num_class_embeds": 4})
    tiny.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="gives its network no class labels"):
        load_teacher(tmp_path / "model")


def test_the_defaults_of_a_family_are_abstract_where_they_must_be() -> None:
    """A family that forgets a part cannot be made."""
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Family,), {})()
