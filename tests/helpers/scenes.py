"""Rows with every layout of pads, and the makers and models that make experience of them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch

from coati_ext.testing import (
    Models,
    experience_maker,
    layouts,
    make_experience,
    tiny_models,
    tiny_tokenizer,
)

KL_COEF = 0.1
WIDTH = 12  # columns of the padded prompts
# The last prompt has an end token inside, two answers the pads of `pad` and of `pad == bos`.
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21, 40, 17, 30], [1, 2, 7, 2, 8], [1, 50, 51]]
ANSWERS = [[20, 0, 21, 2], [2], [22, 1, 1, 23, 24, 2], [25, 26, 27, 28, 29, 31, 32], [34, 35, 2]]
JUNK = 60  # what the scripted sampler puts after an end: no real token may see it


@dataclass(frozen=True)
class Scene:
    """Four tiny models with a tokenizer, and the maker of them."""

    models: Models
    tokenizer: Any
    maker: Any

    def play(self, ids, mask, **given):
        """Experience from prompts (B, S) as they are."""
        return make_experience(
            self.maker, ids, mask, tokenizer=self.tokenizer, **{"max_length": 2 * WIDTH, **given}
        )

    def padded_with(self, pad):
        """The same models and another pad."""
        tokenizer = tiny_tokenizer(pad=pad, padding_side="left")
        options = {"tokenizer": tokenizer, "kl_coef": self.maker.kl_coef}
        return Scene(self.models, tokenizer, experience_maker(self.models, **options))

    def roll(self, answers=ANSWERS, *, prompts=PROMPTS, layout="left", **given):
        """Experience of prompts in one layout and of the answers that are put in for them."""
        pad = self.tokenizer.pad_token_id or 0
        padded = layouts(prompts, pad_token_id=pad, width=WIDTH)
        ids, mask = next((ids, mask) for name, ids, mask in padded if name == layout)
        with scripted(answers):
            return self.play(ids, mask, max_length=WIDTH + max(map(len, answers)), **given)


def scene(family="gpt2", *, pad="pad", side="left", vocab_size=64, **options):
    """A scene whose policy has moved away from its reference."""
    tokenizer = tiny_tokenizer(pad=pad, padding_side=side)
    models = tiny_models(family, vocab_size=vocab_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in models.initial_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    options = {"kl_coef": KL_COEF, **options}
    return Scene(models, tokenizer, experience_maker(models, tokenizer=tokenizer, **options))


@contextmanager
def scripted(answers):
    """Let coati's sampler give these answers, whatever it is asked for."""
    naive = import_module("coati.experience_maker.naive")
    width = max(map(len, answers))
    tokens = torch.tensor([answer + [JUNK] * (width - len(answer)) for answer in answers])
    rows, columns = iter(tokens), iter(tokens.t().unsqueeze(2))

    def generate(model, input_ids, *args, **kwargs):
        return torch.stack([torch.cat([prompt, next(rows)]) for prompt in input_ids])

    if hasattr(naive, "generate"):
        script = mock.patch.object(naive, "generate", generate)
    else:  # before v0.3.2 the sampler has no name of its own there
        script = mock.patch.object(torch, "multinomial", side_effect=columns)
    with script:
        yield


LAYOUTS = ("left", "right", "both", "interior")


def needed(upstream):
    """What unpatched G4 cannot do without, though its default is None."""
    skip_before_v031()
    return {"gt_answer": [None] * len(PROMPTS)} if upstream.generation == "G4" else {}


def skip_before_v031():
    if hasattr(getattr(import_module("coati.models.base"), "Actor", None), "generate"):
        pytest.skip("before v0.3.1 upstream's sampler needs other arguments and its KL is -KL")
