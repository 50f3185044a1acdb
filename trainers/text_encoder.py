"""Train the small CLIP text model of the captioned digits, to say what a caption says.

    python -m stepdistill.trainers.text_encoder --output runs/text-encoder

``OUTPUT/tokenizer`` and ``OUTPUT/text_encoder`` (a ``CLIPTextModelWithProjection``, in float16) are
what diffusers' text-to-image pipelines take; a ``CLIPTextModel`` loads from the same folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from stepdistill.cli import guarded
from stepdistill.config import parse
from stepdistill.data.caption_tokens import MAX_TOKENS, caption_data, caption_tokenizer, tokens
from stepdistill.data.captioned_digits import Caption, CaptionedDigits
from stepdistill.data.scenes import ATTRIBUTES
from stepdistill.fit import FitConfig, fit
from stepdistill.methods import Batch, Loss
from stepdistill.plans import StepPlan
from stepdistill.roles import Role

FRESH = 1  # the seed of captions that no training sees


@dataclass(frozen=True)
class Options:
    """Train the text encoder of the captioned digits."""

    output: str  # the run folder
    lr: float = 2e-3  # learning rate
    width: int = 64  # of the token states and of the pooled one
    layers: int = 3  # the last but one is what Stable Diffusion 3 reads
    empty: float = 0.1  # how often the empty caption is shown
    test_captions: int = 10_000  # fresh captions for the record


class Reader(nn.Module):
    """A text model and three linear probes, on what the pipelines read of it: the mean of the last
    token states (Stable Diffusion), of the last but one, and the projected pooled state (SD 3).

    A probe has, for each attribute, its classes and one more: nothing said.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = [count + 1 for count in ATTRIBUTES.values()]
        views = ("last", "last_but_one", "pooled")
        self.probes = nn.ModuleDict({view: nn.Linear(width, sum(self.classes)) for view in views})

    def forward(self, input_ids: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """(B, 16) -> for each probe the logits of each attribute (B, classes + 1)."""
        states: Any = self.encoder(input_ids, output_hidden_states=True)
        views = {
            "last": states.last_hidden_state.mean(1),
            "last_but_one": states.hidden_states[-2].mean(1),
            "pooled": states.text_embeds,
        }
        read = {view: probe(views[view]) for view, probe in self.probes.items()}
        return {view: logits.split(self.classes, dim=1) for view, logits in read.items()}


class Reading:
    """Cross-entropy of what is said of each attribute, nothing being one of the answers."""

    def __init__(self, reader: Reader, options: Options, empty: Tensor) -> None:
        self.empty, self.often = empty, options.empty
        self.plan = StepPlan()
        self.roles = {"generator": Role("generator", reader)}
        self.updates: dict[str, tuple[str, ...]] = {"generator": ("generator",)}
        self.learning_rates = {"generator": options.lr}
        self.critic_steps = 1
        self.needs_data = False

    def generator_loss(self, batch: Batch) -> Loss:
        """The mean over the probes; a part of the captions is replaced by the empty one."""
        said, input_ids = batch.cond["said"], batch.cond["input_ids"]
        keep = (batch.draws.uniform(len(said)) > self.often)[:, None]
        said = torch.where(keep, said, -1)
        answers = self.roles["generator"](torch.where(keep, input_ids, self.empty))
        losses = {
            name: sum(F.cross_entropy(own, answer(said, i)) for i, own in enumerate(logits))
            for name, logits in answers.items()
        }
        return Loss(sum(losses.values()) / len(losses), {k: v.detach() for k, v in losses.items()})


def answer(said: Tensor, attribute: int) -> Tensor:
    """(B,) the class that is said, the last one for nothing."""
    own = said[:, attribute]
    return torch.where(own < 0, [*ATTRIBUTES.values()][attribute], own)


def captions(count: int, seed: int) -> list[Caption]:
    """The captions of the data set of that seed."""
    data = CaptionedDigits(count=count, seed=seed)
    return [data.example(index).caption for index in range(len(data))]


@torch.no_grad()
def read_right(reader: Reader, count: int) -> dict[str, dict[str, float]]:
    """The share of ``count`` fresh captions that each probe reads right, by attribute and whole."""
    _, cond = caption_data(captions(count, FRESH)).fetch([*range(count)])
    shares: dict[str, dict[str, float]] = {}
    for name, logits in reader(cond["input_ids"]).items():
        right = [own.argmax(1) == answer(cond["said"], i) for i, own in enumerate(logits)]
        shares[name] = {a: float(r.float().mean()) for a, r in zip(ATTRIBUTES, right, strict=True)}
        shares[name]["all"] = float(torch.stack(right).all(0).float().mean())
    return shares


def build(options: Options, tokenizer: Any) -> CLIPTextModelWithProjection:
    """CLIP's text model in small."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.width,
            projection_dim=options.width,
            intermediate_size=2 * options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


DEFAULTS = {
    "max_steps": 2_000,
    "batch_size": 256,
    "betas": (0.9, 0.99),
    "grad_clip": 1.0,
    "lr_warmup": 100,
    "lr_decay": 1_500,
    "ema_half_life": 10_000,
    "log_every": 50,
}


def main(arguments: list[str] | None = None) -> None:
    """Train, save the average in float16, and record what its probes read."""
    settings = parse(
        "stepdistill.trainers.text_encoder", (Options, FitConfig), {}, arguments, DEFAULTS
    )
    options, config = settings.get(Options), settings.get(FitConfig)
    torch.manual_seed(config.seed)
    tokenizer = caption_tokenizer()
    encoder = build(options, tokenizer)
    reader = Reader(encoder, options.width)
    method = Reading(reader, options, tokens(tokenizer, [""]))
    data = caption_data(captions(len(CaptionedDigits()), CaptionedDigits().seed))
    result = fit(method, data, config, options.output)
    folder = Path(options.output)
    with result.ema.applied():
        reader.eval()
        exact = read_right(reader, options.test_captions)
        # halved only in the file: transformers loads by the config's dtype, which stays float32
        halved = {name: weight.half() for name, weight in encoder.state_dict().items()}
        encoder.load_state_dict(halved)
        encoder.save_pretrained(folder / "text_encoder", state_dict=halved)
        tokenizer.save_pretrained(folder / "tokenizer")
        record = {
            "read_right": read_right(reader, options.test_captions),
            "read_right_in_float32": exact,
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "settings": {k: v for k, v in settings.resolved.items() if k != "output"},
        }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    guarded(main)
