"""NASA (SNOOPI): laws of the layers, and negative prompts in training and in stock pipelines."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor
from tiny_pipelines import CALLS, PIPELINES, image
from torch import Tensor, nn

from stepdistill import families
from stepdistill.backbones.latent import LatentFamily
from stepdistill.backbones.packed import unpack
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers import Denoiser
from stepdistill.errors import UserError
from stepdistill.methods import SNOOPI, SNOOPIConfig
from stepdistill.negative_attention import (
    NegativeCrossAttention,
    NegativeFluxAttention,
    NegativeJointAttention,
    is_steered,
    negative_call,
    restore,
    steer,
    with_negative,
)
from stepdistill.plans import StepPlan
from stepdistill.roles import LoRAOptions, full, trainable_role
from stepdistill.teachers import LoadOptions, Teacher

NAMES = (
    *("sd15", "sd21", "sdxl", "pixart-alpha", "pixart-1024", "pixart-sigma", "sd3", "sd35"),
    *("flux", "schnell"),
)
ONE_OF_EACH = ("sd15", "sdxl", "pixart-alpha", "sd35", "flux")
A = torch.tensor([0.3, 0.8])
T = torch.tensor([0.9, 0.4])


def sd35() -> DiffusionPipeline:
    """SD 3.5's transformer: a second attention among image tokens, queries and keys normed."""
    pipeline = image.sd3()
    config = {**pipeline.transformer.config, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    other = copy.copy(pipeline)
    torch.manual_seed(0)
    other.register_modules(transformer=SD3Transformer2DModel.from_config(config).eval())
    for weight in other.transformer.parameters():  # its gates and last layer start at zero
        nn.init.normal_(weight, std=0.2)
    return other


VARIANTS = {
    "pixart-1024": ("pixart-alpha", partial(image.pixart_alpha, additional_conditions=True)),
    "sd35": ("sd3", sd35),
    "schnell": ("flux", partial(image.flux, guidance_embeds=False)),
}


def load(name: str) -> Teacher:
    alike, build = VARIANTS.get(name, (name, PIPELINES.get(name)))
    assert build is not None
    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    family = families.of_pipeline(type(pipeline).__name__, name)
    assert isinstance(family, LatentFamily)
    size: dict[str, Any] = dict(CALLS[alike])
    return family.teacher(pipeline, name, LoadOptions(height=size["height"], width=size["width"]))


LOADED: dict[str, Teacher] = {}


@pytest.fixture(params=NAMES)
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return loaded(request.param)


@pytest.fixture(params=ONE_OF_EACH)
def some_teacher(request: pytest.FixtureRequest) -> Teacher:
    return loaded(request.param)


def loaded(name: str) -> Teacher:
    if name not in LOADED:
        LOADED[name] = load(name)
    return LOADED[name]


@pytest.fixture(autouse=True)
def _unwarned(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Diffusers warns of arguments that a processor does not take, and of nothing else here."""
    logger = logging.getLogger("diffusers")
    logger.propagate = True
    yield
    said = [
        record.message for record in caplog.get_records("call") if "not expected" in record.message
    ]
    logger.propagate = False
    assert not said


def steered(teacher: Teacher) -> Denoiser:
    """A copy of the teacher's denoiser that takes a negative prompt."""
    denoiser = copy.deepcopy(teacher.denoiser)
    steer(denoiser.backbone.network)
    return denoiser


def noisy(teacher: Teacher) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2, *teacher.sample_shape, generator=generator)
    return teacher.denoiser.schedule.add_noise(x0, T, eps)


def told(teacher: Teacher) -> tuple[Conditioning, Conditioning]:
    """Two prompts, and one negative prompt."""
    return teacher.encode(["a red fox", "an old lighthouse at dusk"]), teacher.encode(
        ["blurry, bad"]
    )


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in standard deviations of what is expected."""
    return float((found - expected).detach().abs().max() / expected.detach().std())


# the layers


def softmax(logits: Tensor) -> Tensor:
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def by_head(tokens: Tensor, layer: Any, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, d) of a linear layer, written out."""
    found = tokens @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    return torch.stack(found.chunk(heads, dim=-1), dim=1)


def out_of_heads(heads: Tensor, layer: Any) -> Tensor:
    return torch.cat(heads.unbind(1), dim=-1) @ layer.weight.T + layer.bias


def cross_layer(**config: Any) -> Attention:
    torch.manual_seed(0)
    layer = Attention(12, cross_attention_dim=10, heads=3, dim_head=4, **config).double()
    nn.init.normal_(layer.to_out[0].bias)
    layer.set_processor(NegativeCrossAttention(layer.processor))
    return layer


def tokens(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def reference_cross(
    layer: Any, x: Tensor, positive: Tensor, negative: Tensor, masks: list[Tensor]
) -> Tensor:
    """Standard attention to each text, the second's values flipped in sign and scaled by a."""
    query = by_head(x, layer.to_q, 3)
    z = torch.zeros_like(query)
    for text, mask, weight in zip((positive, negative), masks, (torch.ones(2), -A), strict=True):
        key, value = by_head(text, layer.to_k, 3), by_head(text, layer.to_v, 3)
        logits = query @ key.transpose(-1, -2) / 4**0.5
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        z = z + softmax(logits) @ (value * weight[:, None, None, None])
    return out_of_heads(z, layer.to_out[0])


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_is_the_formula(masked: bool) -> None:
    """Against float64 attention written out, with and without padded tokens."""
    layer = cross_layer()
    x, positive, negative = tokens((2, 6, 12), (2, 5, 10), (2, 5, 10))
    masks = [torch.ones(2, 5, dtype=torch.bool) for _ in range(2)]
    given: dict[str, Any] = {}
    if masked:
        masks[0][0, 3:], masks[1][0, 1:], masks[1][1, 4:] = False, False, False
        bias = (1 - torch.cat(masks, 1).double()) * -10000.0
        given = {"attention_mask": bias[:, None]}
    found = layer(x, torch.cat([positive, negative], 1), **given, negative_scale=A)
    expected = reference_cross(layer, x, positive, negative, masks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_negative_prompt_like_the_prompt_leaves_one_minus_a() -> None:
    """Z becomes (1 - a) Z, before the last projection's bias."""
    layer = cross_layer()
    x, text = tokens((2, 6, 12), (2, 5, 10))
    found = layer(x, torch.cat([text, text], 1), negative_scale=0.3)
    bias = layer.to_out[0].bias
    torch.testing.assert_close(found - bias, 0.7 * (layer(x, text) - bias), rtol=0, atol=1e-12)


def test_the_layers_own_residual_stays() -> None:
    layer = cross_layer(residual_connection=True, rescale_output_factor=2.0)
    x, text, negative = tokens((2, 6, 12), (2, 5, 10), (2, 5, 10))
    both = torch.cat([text, negative], 1)
    torch.testing.assert_close(layer(x, both, negative_scale=0.0), layer(x, text))


def joint_layer(last: bool, norm: str | None) -> Attention:
    torch.manual_seed(0)
    layer = Attention(
        12,
        added_kv_proj_dim=12,
        heads=3,
        dim_head=4,
        out_dim=12,
        context_pre_only=last,
        bias=True,
        qk_norm=norm,
    ).double()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.5)
    block = SD3Transformer2DModel(num_layers=1, attention_head_dim=4, num_attention_heads=3)
    layer.set_processor(NegativeJointAttention(block.transformer_blocks[0].attn.processor))
    return layer


def reference_joint(
    layer: Any, x: Tensor, positive: Tensor, negative: Tensor, away: Tensor, last: bool
) -> tuple[Tensor, Tensor | None]:
    """(image, text) of the three streams, every softmax written out over its own keys."""

    def normed(heads: Tensor, norm: Any) -> Tensor:
        if norm is None:
            return heads
        return heads / (heads.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight

    def image(layer_: Any, norm: Any = None) -> Tensor:
        return normed(by_head(x, layer_, 3), norm)

    def text(which: Tensor, layer_: Any, norm: Any = None) -> Tensor:
        return normed(by_head(which, layer_, 3), norm)

    def probabilities(query: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        keys = [image(layer.to_k, layer.norm_k), text(which, layer.add_k_proj, layer.norm_added_k)]
        logits = query @ torch.cat(keys, 2).transpose(-1, -2) / 4**0.5
        found = softmax(logits)
        return found[..., : x.shape[1]], found[..., x.shape[1] :]

    def stock(query: Tensor, which: Tensor) -> Tensor:
        to_image, to_text = probabilities(query, which)
        return to_image @ image(layer.to_v) + to_text @ text(which, layer.add_v_proj)

    query = image(layer.to_q, layer.norm_q)
    to_negative = probabilities(query, negative)[1] @ text(negative, layer.add_v_proj)
    seen = stock(query, positive) - away[:, None, None, None] * to_negative
    if last:
        return out_of_heads(seen, layer.to_out[0]), None
    texts = [
        stock(text(which, layer.add_q_proj, layer.norm_added_q), which)
        for which in (positive, negative)
    ]
    return (
        out_of_heads(seen, layer.to_out[0]),
        out_of_heads(torch.cat(texts, 2), layer.to_add_out),
    )


@pytest.mark.parametrize("norm", [None, "rms_norm"])
@pytest.mark.parametrize("last", [False, True])
def test_joint_attention_is_the_formula(last: bool, norm: str | None) -> None:
    layer = joint_layer(last, norm)
    x, positive, negative = tokens((2, 6, 12), (2, 5, 12), (2, 5, 12))
    image_out, text_out = layer(x, torch.cat([positive, negative], 1), negative_scale=A)
    expected = reference_joint(layer, x, positive, negative, A, last)
    near = 1e-11 if norm is None else 1e-5  # diffusers' norm takes its mean square in float32
    torch.testing.assert_close(image_out, expected[0], rtol=0, atol=near)
    if expected[1] is not None:
        torch.testing.assert_close(text_out, expected[1], rtol=0, atol=near)


def test_joint_attention_beside_the_stock_one() -> None:
    """a = 0 gives image and positive tokens as the stock layer does; N = P makes both texts alike,
    and the image loses a of its text part, which is linear in a."""
    layer = joint_layer(last=False, norm=None)
    x, text, other = tokens((2, 6, 12), (2, 5, 12), (2, 5, 12))
    stock_image, stock_text = layer(x, text)
    image_out, text_out = layer(x, torch.cat([text, other], 1), negative_scale=0.0)
    torch.testing.assert_close(image_out, stock_image, rtol=0, atol=1e-12)
    torch.testing.assert_close(text_out[:, :5], stock_text, rtol=0, atol=1e-12)
    both = torch.cat([text, text], 1)
    outs = [layer(x, both, negative_scale=a) for a in (0.25, 1.0)]
    torch.testing.assert_close(outs[0][1][:, 5:], stock_text, rtol=0, atol=1e-12)
    only_image = outs[1][0]  # the text's part is gone whole
    expected = only_image + 0.75 * (stock_image - only_image)
    torch.testing.assert_close(outs[0][0], expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        layer.add_v_proj.weight.zero_()
        layer.add_v_proj.bias.zero_()
    torch.testing.assert_close(only_image, layer(x, text)[0], rtol=0, atol=1e-12)


def flux_layer(single: bool) -> FluxAttention:
    torch.manual_seed(0)
    own: dict[str, Any] = {"pre_only": True} if single else {"added_kv_proj_dim": 12}
    layer = FluxAttention(12, heads=3, dim_head=4, out_dim=12, bias=True, **own).double()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.5)
    layer.set_processor(NegativeFluxAttention(layer.processor))
    return layer


def angles(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random (cos, sin) of a position each, as Flux' embedding gives them for 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return tuple(wave.repeat_interleave(2, dim=1) for wave in (angle.cos(), angle.sin()))


@pytest.mark.parametrize("single", [False, True])
def test_flux_attention_is_the_formula(single: bool) -> None:
    """The stock layer called without the negative tokens gives image and prompt, called without
    the prompt the negative tokens; what the image loses is written out."""
    layer = flux_layer(single)
    x, positive, negative = tokens((2, 6, 12), (2, 5, 12), (2, 5, 12))
    of_text, of_image = angles(5, 2), angles(6, 3)
    rotary = [torch.cat(both) for both in zip(of_text, of_image, strict=True)]
    doubled = [torch.cat(both) for both in zip(of_text, of_text, of_image, strict=True)]

    def called(text: Tensor, places: list[Tensor], **steering: Any) -> tuple[Tensor, Tensor]:
        """(image, text) of a call, whichever kind of layer it is."""
        if single:
            out = layer(torch.cat([text, x], 1), image_rotary_emb=tuple(places), **steering)
            return out[:, text.shape[1] :], out[:, : text.shape[1]]
        found: tuple[Tensor, Tensor] = layer(x, text, None, tuple(places), **steering)
        return found

    def heads(which: Tensor, place: str, norm: str | None, of_words: bool) -> Tensor:
        name = f"add_{place}_proj" if of_words and not single else f"to_{place}"
        made = by_head(which, getattr(layer, name), 3)
        if norm is None:
            return made
        own = getattr(layer, f"norm_added_{norm}" if of_words and not single else f"norm_{norm}")
        made = made / (made.square().mean(-1, keepdim=True) + own.eps).sqrt() * own.weight
        return apply_rotary_emb(made, of_text if of_words else of_image, sequence_dim=2)

    both = torch.cat([positive, negative], 1)
    image_out, text_out = called(both, doubled, negative_scale=A, negative_tokens=5)
    stock, stock_positive = called(positive, rotary)
    _, stock_negative = called(negative, rotary)
    query = heads(x, "q", "q", False)
    keys = torch.cat([heads(negative, "k", "k", True), heads(x, "k", "k", False)], dim=2)
    to_negative = softmax(query @ keys.transpose(-1, -2) / 4**0.5)[..., :5]
    lost = A[:, None, None, None] * (to_negative @ heads(negative, "v", None, True))
    lost = torch.cat(lost.unbind(1), dim=-1)
    lost = lost if single else lost @ layer.to_out[0].weight.T
    torch.testing.assert_close(image_out, stock - lost, rtol=0, atol=1e-11)
    expected = torch.cat([stock_positive, stock_negative], 1)
    torch.testing.assert_close(text_out, expected, rtol=0, atol=1e-11)


# the networks, as training calls them


def test_at_zero_and_without_a_negative_prompt_it_is_the_stock_network(teacher: Teacher) -> None:
    """a = 0 gives the same x0_hat to 1e-5; a call without a negative prompt the same bits."""
    (cond, negative), x_t = told(teacher), noisy(teacher)
    expected, student = teacher.denoiser(x_t, T, cond).x0_hat, steered(teacher)
    assert torch.equal(student(x_t, T, cond).x0_hat, expected)
    at_zero = student(x_t, T, with_negative(cond, negative, 0.0)).x0_hat
    assert off(at_zero, expected) < 1e-5
    away = student(x_t, T, with_negative(cond, negative, A)).x0_hat
    assert off(away, expected) > 1e-2
    restore(student.backbone.network)
    assert not is_steered(student.backbone.network)
    kinds = [type(layer.processor) for layer in attentions(student)]
    assert kinds == [type(layer.processor) for layer in attentions(teacher.denoiser)]


def attentions(module: nn.Module) -> list[Any]:
    return [x for x in module.modules() if isinstance(x, Attention | FluxAttention)]


def test_one_scale_a_sample(some_teacher: Teacher) -> None:
    """A batch with a scale each equals its samples, each called alone with a number."""
    (cond, negative), x_t = told(some_teacher), noisy(some_teacher)
    student = steered(some_teacher)
    together = student(x_t, T, with_negative(cond, negative, A)).x0_hat
    for i, a in enumerate(A.tolist()):
        one = with_negative(cond.select(slice(i, i + 1)), negative, a)
        alone = student(x_t[i : i + 1], T[i : i + 1], one).x0_hat
        assert off(together[i : i + 1], alone) < 1e-5


def test_a_negative_prompt_a_sample(some_teacher: Teacher) -> None:
    """One row of negative tokens serves all samples; B rows serve one each."""
    (cond, negative), x_t = told(some_teacher), noisy(some_teacher)
    student = steered(some_teacher)
    two = some_teacher.encode(["blurry, bad", "a cat"])
    found = student(x_t, T, with_negative(cond, two, A)).x0_hat
    expected = student(x_t, T, with_negative(cond, negative, A)).x0_hat
    assert off(found[:1], expected[:1]) < 1e-5
    assert off(found[1:], expected[1:]) > 1e-3


@pytest.mark.parametrize("place", [0, 1])
def test_padded_tokens_are_not_read(place: int) -> None:
    """PixArt's masks hold for both prompts: tokens behind either's end may be anything."""
    teacher = loaded("pixart-alpha")
    (cond, negative), x_t = told(teacher), noisy(teacher)
    student, both = steered(teacher), with_negative(cond, negative, A)
    kept = both["prompt_mask"].bool()
    count = cond["prompt_embeds"].shape[1]
    half = torch.zeros_like(kept)
    half[:, place * count : (place + 1) * count] = True
    expected = student(x_t, T, both).x0_hat
    for where, heard in ((half & ~kept, False), (half & kept, True)):
        assert where.any()
        changed = both["prompt_embeds"] + 3.0 * where[..., None]
        found = student(x_t, T, both.replace(Conditioning({"prompt_embeds": changed}))).x0_hat
        assert (off(found, expected) > 1e-3) == heard
        assert heard or torch.equal(found, expected)


def gradients(denoiser: nn.Module, teacher: Teacher) -> dict[str, Tensor]:
    cond = with_negative(*told(teacher), A)
    x0_hat = denoiser(noisy(teacher), T, cond).x0_hat
    named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(x0_hat.square().mean(), list(named.values()))
    return dict(zip(named, found, strict=True))


def test_gradients_with_checkpointing_and_in_copies(some_teacher: Teacher) -> None:
    """Every weight that learns has a finite gradient; recomputing blocks, or a deep copy, gives the
    same, and a role's frozen view is steered as its role is."""
    role = full("generator", steered(some_teacher))
    expected = gradients(role.module, some_teacher)
    assert all(bool(g.isfinite().all()) for g in expected.values())
    assert sum(bool(g.any()) for g in expected.values()) > 0.9 * len(expected)
    again = copy.deepcopy(role.module)
    again.backbone.network.enable_gradient_checkpointing()
    for other in (again, copy.deepcopy(role.module)):
        found = gradients(other, some_teacher)
        scale = max(float(g.norm()) for g in expected.values())
        for name, gradient in expected.items():
            assert float((found[name] - gradient).norm()) < 1e-5 * scale, name
    cond, x_t = with_negative(*told(some_teacher), A), noisy(some_teacher)
    frozen = role.frozen(x_t, T, cond).x0_hat
    assert off(frozen, role.module.eval()(x_t, T, cond).x0_hat) < 1e-5


def test_a_copy_is_restored_alone(some_teacher: Teacher) -> None:
    """Taking one's processors back leaves the other steered, PixArt's pre-hook included."""
    network = steered(some_teacher).backbone.network
    other = copy.deepcopy(network)
    restore(other)
    restore(other)
    assert is_steered(network)
    assert not is_steered(other)
    hooks = [len(n._forward_pre_hooks) for n in (network, other)]
    assert hooks == ([1, 0] if isinstance(network, PixArtTransformer2DModel) else [0, 0])
    steer(network)
    steer(network)
    assert len(network._forward_pre_hooks) == hooks[0]
    stocks = [layer.processor.stock for layer in attentions(network)]
    kinds = NegativeCrossAttention | NegativeJointAttention | NegativeFluxAttention
    assert not any(isinstance(stock, kinds) for stock in stocks)


def test_lora_adapters_learn_through_it(some_teacher: Teacher) -> None:
    """An adapter that has learnt nothing leaves x0_hat, and gets a gradient."""
    role = trainable_role(
        "generator", steered(some_teacher), LoRAOptions(rank=2), some_teacher.lora_targets
    )
    cond, x_t = with_negative(*told(some_teacher), A), noisy(some_teacher)
    x0_hat = role.module.eval()(x_t, T, cond).x0_hat
    assert off(x0_hat, steered(some_teacher)(x_t, T, cond).x0_hat) < 1e-5
    x0_hat.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in role.trainable().values())
    assert any(bool(p.grad.any()) for p in role.trainable().values())


def test_weights_keep_their_names(teacher: Teacher) -> None:
    assert list(steered(teacher).state_dict()) == list(teacher.denoiser.state_dict())


# stock pipelines


def sampled(teacher: Teacher, call: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """Two latents in 2 steps, and the batch size of each call of the network."""
    sizes: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    network = teacher.denoiser.backbone.network
    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    settings = teacher.family.settings(teacher)
    found = teacher.pipeline(
        generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        num_inference_steps=2,
        output_type="latent",
        return_dict=False,
        **{**settings, **call},
    )[0]
    hook.remove()
    return torch.as_tensor(found), sizes


PROMPTS = ["a red fox", "an old lighthouse at dusk"]


@pytest.fixture
def released(teacher: Teacher) -> Iterator[Teacher]:
    """Its network is as before afterwards."""
    yield teacher
    restore(teacher.denoiser.backbone.network)


def test_a_stock_pipeline_steers_by_the_call(released: Teacher) -> None:
    """a = 0 gives the plain call's latents, a > 0 others; guidance is off, so that the network is
    called once a step; the plain call stays as it was, bit for bit."""
    teacher, pipeline = released, released.pipeline
    plain_call: dict[str, Any] = {"prompt": PROMPTS}
    if not isinstance(teacher.denoiser.backbone.network, FluxTransformer2DModel):
        plain_call["guidance_scale"] = 1.0  # Flux is told another, and called once a step with it
    plain, sizes = sampled(teacher, plain_call)
    assert sizes == [2] * (3 if teacher.name == "sd15" else 2)  # PNDM calls once more
    at_zero, as_many = sampled(teacher, negative_call(pipeline, PROMPTS, "blurry", 0.0))
    assert as_many == sizes
    assert off(at_zero, plain) < 1e-4
    away, _ = sampled(teacher, negative_call(pipeline, PROMPTS, "blurry", 0.5))
    assert off(away, plain) > 1e-2
    more, _ = sampled(teacher, negative_call(pipeline, PROMPTS, ["blurry", "a dog"], 0.5))
    assert off(more[:1], away[:1]) < 1e-4
    assert off(more[1:], away[1:]) > 1e-3
    assert torch.equal(sampled(teacher, plain_call)[0], plain)


def test_a_stock_pipeline_gives_what_training_saw(released: Teacher) -> None:
    """The network is called as a backbone calls it with with_negative: its output is the same."""
    teacher, seen = released, []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        seen.append((x, timestep, output[0]))

    network = teacher.denoiser.backbone.network
    hook = network.register_forward_hook(keep, with_kwargs=True)
    sampled(teacher, negative_call(teacher.pipeline, PROMPTS, "blurry, bad", 0.3))
    hook.remove()
    cond = with_negative(teacher.encode(PROMPTS), teacher.encode(["blurry, bad"]), 0.3)
    height, width = teacher.sample_shape[1:]
    for x, timestep, output in seen:
        if isinstance(network, FluxTransformer2DModel):  # whose pipeline packs latents itself
            x, output = (unpack(tokens_, height, width) for tokens_ in (x, output))
            timestep = 1000 * timestep
        found = teacher.denoiser.backbone(x, timestep, cond)
        assert off(found, output[:, : found.shape[1]]) < 1e-5


def test_several_images_a_prompt(released: Teacher) -> None:
    """num_images_per_prompt repeats both prompts and, in PixArt's masks, the scale."""
    teacher = released
    call = negative_call(teacher.pipeline, PROMPTS[:1], "blurry", 0.5)
    two, _ = sampled(teacher, {**call, "num_images_per_prompt": 2})
    twice = negative_call(teacher.pipeline, PROMPTS[:1] * 2, "blurry", 0.5)
    assert off(two, sampled(teacher, twice)[0]) < 1e-5


def test_prompts_are_cleaned_as_the_pipeline_cleans_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """PixArt's call does, its encode_prompt does not unless told; what is given goes before."""
    pipeline, asked = loaded("pixart-alpha").pipeline, []

    def clean(text: list[str], clean_caption: bool = False) -> list[str]:
        asked.append(clean_caption)
        return text

    monkeypatch.setattr(pipeline, "_text_preprocessing", clean)
    negative_call(pipeline, PROMPTS, "blurry", 0.5)
    call = negative_call(
        pipeline, PROMPTS, "blurry", 0.5, clean_caption=False, max_sequence_length=7
    )
    assert asked == [True, True, False, False]
    assert call["prompt_embeds"].shape[1] == call["prompt_attention_mask"].shape[1] == 14


def test_an_exported_student_takes_a_negative_prompt(tmp_path: Path) -> None:
    """Exported from a steered network it is a stock folder, which is steered where it is used."""
    teacher = loaded("sd15")
    student = steered(teacher)
    plan = StepPlan()
    teacher.save_student(student, plan, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert not is_steered(pipeline.unet)
    settings = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False}
    size = dict(CALLS["sd15"])

    def latents(**call: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found: Tensor = pipeline(generator=generator, **size, **settings, **call)[0]
        return found

    plain = latents(prompt="a cat")
    assert off(latents(**negative_call(pipeline, "a cat", "blurry", 0.0)), plain) < 1e-4
    found = latents(**negative_call(pipeline, "a cat", "blurry", 0.4))
    assert off(found, plain) > 1e-2
    cond = with_negative(teacher.encode(["a cat"]), teacher.encode(["blurry"]), 0.4)
    z = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    expected = student(z, torch.tensor(plan.times[:1]), cond).x0_hat
    assert off(found, expected) < 1e-4


# mistakes


@pytest.mark.parametrize("name", ["dit", "sana"])
def test_other_networks_are_refused(name: str) -> None:
    pipeline = PIPELINES[name]()
    network = pipeline.transformer
    with pytest.raises(UserError, match=f"{type(network).__name__}.*FluxTransformer2DModel"):
        steer(network)
    with pytest.raises(UserError, match=f"{type(pipeline).__name__}.*PixArtSigmaPipeline"):
        negative_call(pipeline, "a cat", "blurry", 0.2)


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8,),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            **config,
        }
    )


MIXED = {
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "down_block_types": ("SimpleCrossAttnDownBlock2D",),
    "up_block_types": ("SimpleCrossAttnUpBlock2D",),
}
POOLED = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}


@pytest.mark.parametrize("config", [MIXED, POOLED], ids=["keys mixed", "text pooled"])
def test_u_nets_that_read_text_otherwise_are_refused(config: dict[str, Any]) -> None:
    network = unet(**config)
    with pytest.raises(UserError, match="cross-attention alone"):
        steer(network)
    assert not is_steered(network)


@pytest.mark.parametrize("name", ["unet", "flux"])
def test_processors_with_weights_are_refused(name: str) -> None:
    network = unet() if name == "unet" else PIPELINES["flux"]().transformer
    kind = IPAdapterAttnProcessor2_0 if name == "unet" else FluxIPAdapterAttnProcessor
    attentions(network)[1].set_processor(kind(8, 8))
    with pytest.raises(UserError, match="unload them"):
        steer(network)
    assert not is_steered(network)


def test_training_with_one_needs_a_null_conditioning() -> None:
    """Flux is guided by a number: there is nothing whose place the negative prompt could take."""
    config = SNOOPIConfig(negative_prompt="blurry", critic_dropout=0.0)
    with pytest.raises(UserError, match="flux has no null conditioning whose place"):
        SNOOPI.more(loaded("flux"), config)


@pytest.mark.parametrize("scale", [-0.1, 1.5, float("nan")])
def test_scales_outside_zero_and_one_are_refused(scale: float) -> None:
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        negative_call(loaded("sd15").pipeline, "a cat", "blurry", scale)


def test_as_many_negative_prompts_as_prompts() -> None:
    with pytest.raises(UserError, match="2 negative prompts for 3 prompts"):
        negative_call(loaded("sd15").pipeline, ["a", "b", "c"], ["d", "e"], 0.2)


def test_conditionings_that_do_not_fit_are_refused() -> None:
    labels = Conditioning({"class_labels": torch.tensor([1, 2])})
    with pytest.raises(UserError, match="not by classes"):
        with_negative(labels, labels, 0.2)
    cond, negative = told(loaded("sd15"))
    short = Conditioning({"prompt_embeds": negative["prompt_embeds"][:, :70]})
    with pytest.raises(UserError, match="70 tokens where prompts have 77"):
        with_negative(cond, short, 0.2)


def test_a_call_without_its_negative_tokens_is_refused() -> None:
    """77 tokens have no second half."""
    teacher = loaded("sd15")
    cond, _ = told(teacher)
    alone = cond.replace(Conditioning({"negative_scale": A}))
    with pytest.raises(UserError, match="77 in all"):
        steered(teacher)(noisy(teacher), T, alone)


def test_a_flux_call_that_does_not_say_how_many_tokens_is_refused() -> None:
    """Nothing in one stream tells where the negative tokens end."""
    layer = flux_layer(single=True)
    with pytest.raises(UserError, match="needs negative_tokens"):
        layer(torch.zeros(1, 16, 12, dtype=torch.float64), negative_scale=0.3)


def test_a_network_that_was_not_steered_refuses_a_negative_prompt() -> None:
    """Diffusers would only warn, and read the negative prompt as a part of the prompt."""
    teacher = loaded("sd15")
    with pytest.raises(RuntimeError, match="steer"):
        teacher.denoiser(noisy(teacher), T, with_negative(*told(teacher), A))
