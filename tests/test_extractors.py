"""Extractors against the libraries and the published code whose numbers they must give."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clips import dinov2_folder
from torch import Tensor, nn
from torch.nn import functional

from stepdistill.data.captioned_digits import evaluation_prompts, real_pictures
from stepdistill.errors import UserError
from stepdistill.evaluation.reading.images import decode
from stepdistill.metrics.extractors import EXTRACTORS, extractor, unpublished
from stepdistill.metrics.extractors.clip_vision import CLIP_336
from stepdistill.metrics.extractors.dinov2 import DINOV2, published_positions
from stepdistill.metrics.extractors.inception_network import INCEPTION, STATE_DICT
from stepdistill.metrics.extractors.scenes import load_scene_classifier
from stepdistill.metrics.features import Pixels, digest, quantised

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = ((32, 32), (299, 299), (64, 48), (320, 400), (8, 8))  # height, width
CLOSE = 1e-4  # what the features of one network may differ by


def picture(height: int, width: int, channels: int, seed: int) -> Pixels:
    """Smooth blobs with grain, so that every resize and every layer has something to see."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3 + seed, 4, channels), dtype=np.uint8)
    smooth = [
        Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    grain = rng.normal(0, 12, (height, width, channels))
    return (np.stack([np.asarray(c) for c in smooth], 2) + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of several sizes, and a grey one."""
    place = tmp_path_factory.mktemp("images")
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(picture(height, width, 3, i)).save(place / f"{i}.png")
    Image.fromarray(picture(40, 50, 1, 9)[:, :, 0]).save(place / "9.png")
    return place


def images_of(folder: Path) -> list[Pixels]:
    return [decode(file, "RGB") for file in sorted(folder.iterdir())]


def close(own: Tensor, other: Tensor | np.ndarray[Any, Any], at_most: float = CLOSE) -> None:
    """Equal within ``at_most``, and no two images the same to the network."""
    other = torch.as_tensor(other)
    assert own.shape == other.shape
    assert float((own - other).abs().max()) <= at_most
    assert float(other.std(0).mean()) > 100 * at_most


# Inception


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's network with random weights, its norms set to what images give them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        module = "torch_fidelity.feature_extractor_inceptionv3"
        patch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("random", ["2048"])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            layer.momentum = None
            layer.train()
    seen = np.stack([picture(150, 150, 3, seed) for seed in range(4)])
    network(torch.from_numpy(seen).permute(0, 3, 1, 2))
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def fidelity(state_dict: Path) -> Any:
    """torch-fidelity's own extractor with them: features and logits."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        "random", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(state_dict)
    )


def of_fidelity(fidelity: Any, images: list[Pixels]) -> tuple[Tensor, Tensor]:
    """What torch-fidelity makes of 8-bit images, one by one: they differ in size."""
    found = [fidelity(torch.from_numpy(p.copy()).permute(2, 0, 1)[None]) for p in images]
    features, logits = (torch.cat(rows) for rows in zip(*found, strict=True))
    return features, logits


def of_clean_fid(folder: Path, network: Any) -> np.ndarray[Any, Any]:
    """What clean-fid makes of a folder with ``network`` as its custom extractor."""
    from cleanfid.fid import get_folder_features

    found: np.ndarray[Any, Any] = get_folder_features(
        str(folder), network, num_workers=0, device=torch.device("cpu"), verbose=False
    )
    return found


@pytest.fixture
def of_floats(fidelity: Any) -> Iterator[Any]:
    """torch-fidelity's own forward on images of 299x299 that are not rounded: (B, 3, 299, 299) in 0
    to 255. It asks for 8 bits, so its first layer is given the input instead."""
    given: list[Tensor] = []
    hook = fidelity.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (given[-1] - 128) / 128)

    def network(images: Tensor) -> Tensor:
        given.append(images)
        features: Tensor = fidelity(torch.zeros(images.shape, dtype=torch.uint8))[0]
        return features

    yield network
    hook.remove()


@pytest.mark.slow
def test_the_tensorflow_resize_equals_torch_fidelity(
    state_dict: Path, fidelity: Any, folder: Path
) -> None:
    """Features and logits of one file of random weights, images of several sizes in one batch."""
    features, images = extractor("inception-tf", state_dict), images_of(folder)
    own = features.of_pixels(images)
    expected, logits = of_fidelity(fidelity, images)
    close(own, expected)
    assert features.logits is not None
    assert features.logits.shape == (1008, 2048)
    close(own @ features.logits.T, logits)


@pytest.mark.slow
def test_the_clean_resize_equals_clean_fid_with_torch_fidelitys_network(
    state_dict: Path, folder: Path, of_floats: Any
) -> None:
    """The same weights as clean-fid's custom extractor, on what clean-fid resizes."""
    features = extractor("inception", state_dict)
    close(features.of_pixels(images_of(folder)), of_clean_fid(folder, of_floats))


@pytest.mark.slow
def test_all_agree_where_nothing_is_resized(
    state_dict: Path, fidelity: Any, of_floats: Any, tmp_path: Path
) -> None:
    """On images of 299x299 the two extractors, torch-fidelity and clean-fid give one value."""
    for seed in range(3):
        Image.fromarray(picture(299, 299, 3, seed)).save(tmp_path / f"{seed}.png")
    images = images_of(tmp_path)
    clean = of_clean_fid(tmp_path, of_floats)
    for name in ("inception", "inception-tf"):
        close(extractor(name, state_dict).of_pixels(images), clean)


@pytest.mark.slow
def test_the_resizes_differ(state_dict: Path, folder: Path) -> None:
    """They are two metrics: their features lie a thousand times further apart than rounding."""
    images = images_of(folder)
    one, other = (extractor(n, state_dict).of_pixels(images) for n in ("inception", "inception-tf"))
    assert float((one - other).abs().max()) > 1000 * CLOSE


class Stand(nn.Module):
    """A small network with the interface of NVIDIA's file, which resizes inside."""

    def __init__(self) -> None:
        super().__init__()
        conv, pool = nn.Conv2d(3, 16, 5, stride=2), nn.AdaptiveAvgPool2d(4)
        self.layers = nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(256, 2048))
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        n, _, height, width = img.shape
        # sample i lies at i size / 299: TensorFlow's corner, in affine_grid's coordinates
        theta = torch.eye(2, 3).repeat(n, 1, 1)
        theta[:, 0, 2] = 1 / width - 1 / 299
        theta[:, 1, 2] = 1 / height - 1 / 299
        grid = functional.affine_grid(theta, [n, 3, 299, 299], align_corners=False)
        x = functional.grid_sample(
            img.float(), grid, "bilinear", padding_mode="border", align_corners=False
        )
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        return torch.softmax(functional.linear(features, self.output.weight), 1)


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network in a file of NVIDIA's kind, under clean-fid's name, and under its own."""
    torch.manual_seed(0)
    place, network = tmp_path_factory.mktemp("torchscript"), torch.jit.script(Stand())
    for name in (INCEPTION.file, "random.pt"):
        network.save(str(place / name))
    return place / "random.pt"


def test_torchscript_equals_clean_fids_two_modes(torchscript: Path, folder: Path) -> None:
    """clean-fid's network in its clean mode, and its legacy_tensorflow mode with its own loader."""
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = images_of(folder)
    clean = InceptionV3W(str(torchscript.parent), download=False)
    close(extractor("inception", torchscript).of_pixels(images), of_clean_fid(folder, clean))
    legacy = get_folder_features(
        str(folder),
        InceptionV3W(str(torchscript.parent), download=False, resize_inside=True),
        num_workers=0,
        batch_size=1,
        mode="legacy_tensorflow",
        device=torch.device("cpu"),
        verbose=False,
    )
    features = extractor("inception-tf", torchscript)
    own = features.of_pixels(images)
    close(own, legacy)
    assert features.logits is not None
    whole = torch.jit.load(str(torchscript))
    eight_bit = [torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] for pixels in images]
    probabilities = torch.cat([whole(image) for image in eight_bit])
    torch.testing.assert_close((own @ features.logits.T).softmax(1), probabilities)


class Trap:
    """A pickle that leaves a file behind where it is loaded carelessly."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_weights_that_are_not_those_of_inception(
    torchscript: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network without classes, another state dict, a pickle with code in it, a published name on
    other bytes, and torch-fidelity's file without torch-fidelity: each is a sentence."""

    class NoClasses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    torch.jit.script(NoClasses()).save(str(tmp_path / "bare.pt"))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    torch.save({"code": Trap(tmp_path / "ran")}, tmp_path / "code.pth")
    for name, said in (
        ("bare.pt", r"bare\.pt has no output\.weight"),
        ("other.pth", r"other\.pth is truncated, or not inception-2015-12-05\.pt or weights-"),
        ("code.pth", r"code\.pth is truncated, or not"),
    ):
        with pytest.raises(UserError, match=said):
            extractor("inception-tf", tmp_path / name)
    assert not (tmp_path / "ran").exists()
    for asset in (INCEPTION, STATE_DICT):
        (tmp_path / asset.file).write_bytes(torchscript.read_bytes())
        with pytest.raises(UserError, match=f"{asset.file} is truncated, or not {asset.file}"):
            extractor("inception", tmp_path / asset.file)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r'pip install "stepdistill\[fidelity\]"'):
        extractor("inception", tmp_path / "other.pth")


# DINOv2


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DINOv2 of the published kind: positions of a 37x37 grid."""
    return dinov2_folder(tmp_path_factory.mktemp("dinov2"), 32, 2)


def test_dinov2_equals_the_published_code(dinov2: Path, folder: Path) -> None:
    """torchvision's transforms as dgm-eval has them, and transformers' network with the positions
    that DINOv2's code resamples; of a folder with RGB and grey files."""
    from torchvision import transforms as t
    from transformers import Dinov2Model

    transform = t.Compose(
        [
            t.Resize((224, 224), t.InterpolationMode.BICUBIC),
            t.ToTensor(),
            t.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    network = Dinov2Model.from_pretrained(dinov2).eval()
    files = sorted(folder.iterdir())
    inputs = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    old = network.embeddings.position_embeddings.detach()
    places = (torch.arange(16) + 0.5) / 16.1 * 2 - 1  # of 37 rows, in grid_sample's -1 to 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1)[None]
    square = old[:, 1:].reshape(1, 37, 37, 32).permute(0, 3, 1, 2)
    new = functional.grid_sample(square, grid, "bicubic", "border", align_corners=False)
    positions = torch.cat([old[:, :1], new.flatten(2).mT], 1)
    torch.testing.assert_close(published_positions(old, 16), positions, atol=1e-5, rtol=0)
    with torch.no_grad():
        theirs = network(inputs).last_hidden_state[:, 0]
        network.embeddings.position_embeddings.data = positions
        expected = network(inputs).last_hidden_state[:, 0]
    features = extractor("dinov2", dinov2)
    assert (features.size, features.sha256) == (32, digest(dinov2 / "model.safetensors"))
    own = features.of_pixels(images_of(folder))
    close(own, expected, 2e-5)
    assert float((own - theirs).abs().max()) > 100 * 2e-5  # transformers' positions are others


def test_positions_of_the_same_grid_stay() -> None:
    positions = torch.randn(1, 17, 8)
    assert published_positions(positions, 4) is positions


# CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP, text and image, as the published repository holds both."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = {**tiny, "num_attention_heads": 2, "image_size": 336, "patch_size": 14}
    vision["projection_dim"] = 24
    text = {**tiny, "num_attention_heads": 2, "vocab_size": 99}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    network, place = CLIPModel(config), tmp_path_factory.mktemp("clip")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(place)
    return place


def test_clip_equals_the_published_code(clip: Path, folder: Path) -> None:
    """PIL's crop and resize and CLIP's processor, as CMMD's code has them, and transformers' whole
    CLIP, of which CMMD sees the image half."""
    from transformers import CLIPImageProcessor, CLIPModel

    crops = []
    for file in sorted(folder.iterdir()):
        with Image.open(file) as image:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
        crops.append(np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC)) / 255)
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    network = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        inputs = processor(images=[c.astype(np.float32) for c in crops], return_tensors="pt")
        hidden = network.vision_model(**inputs).pooler_output
        expected = network.visual_projection(hidden)
    expected /= expected.norm(dim=1, keepdim=True)
    features = extractor("clip-336", clip)
    assert (features.size, features.sha256) == (24, digest(clip / "model.safetensors"))
    close(features.of_pixels(images_of(folder)), expected, 2e-5)


@pytest.mark.parametrize(("name", "other"), [("dinov2", "clip"), ("clip-336", "dinov2")])
def test_a_folder_of_another_network(
    name: str, other: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """transformers would fill it up with random weights: refused, as are damaged weights."""
    folder = Path(request.getfixturevalue(other))
    with pytest.raises(UserError, match=rf"{folder.name} holds no .*it has no "):
        extractor(name, folder)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="holds no "):
        extractor(name, tmp_path)


# all of them


def test_every_extractor_says_what_it_does(
    torchscript: Path, dinov2: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, resize, and a note where its weights are not those of published numbers; the weights
    come from the environment too."""
    variables = {INCEPTION: torchscript, DINOV2: dinov2, CLIP_336: clip}
    for asset, place in variables.items():
        monkeypatch.setenv(asset.variable, str(place))
    assert len(EXTRACTORS) == 6
    for name in EXTRACTORS:
        features = extractor(name)
        assert features.name == name
        own = name in ("digits", "scenes")
        assert (features.resize == "none") == own
        note = unpublished(features)
        assert (note is None) == own
        assert note is None or f"the weights of {name} are not the published" in note


def test_mistaken_names_and_weights() -> None:
    with pytest.raises(UserError, match=r"no inceptoin features \(did you mean inception\?\)"):
        extractor("inceptoin")
    with pytest.raises(UserError, match="use one of digits, scenes, inception, inception-tf"):
        extractor("vgg")
    for name in ("digits", "scenes"):
        with pytest.raises(UserError, match=f"{name} features are bundled.*weights some.pt"):
            extractor(name, "some.pt")


def test_scenes_are_the_classifiers_features() -> None:
    """Of 8-bit images what the world's own measure sees, to the last bit; grey ones and others than
    32x32 as said."""
    features = extractor("scenes")
    x0 = real_pictures(evaluation_prompts()[:20], range(20))
    assert torch.equal(features(x0), load_scene_classifier().features(quantised(x0)))
    grey = np.full((32, 32, 1), 90, np.uint8)
    assert torch.equal(features.of_pixels([grey]), features.of_pixels([np.repeat(grey, 3, axis=2)]))
    with pytest.raises(UserError, match="32x32 images, not 40x30"):
        features.of_pixels([np.zeros((30, 40, 3), np.uint8)])
