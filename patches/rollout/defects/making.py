"""Make experience from given or from sampled answers, for the measurements in this folder.

Most measurements replace upstream's ``generate`` by a function that appends given answers, so that
they do not depend on sampling. Letters: B rows, A action columns.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Iterator, List, Sequence
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor

Rows = Sequence[Sequence[int]]

PROMPTS = [[1, 9, 8, 7], [1, 14, 6, 33, 21, 40, 17, 30]]
ANSWERS = [[20, 21, 22, 2], [29, 30, 31, 32, 33, 34, 2]]
ROOM = 24
"""Maximum length of prompt and answer together."""


def answered(
    models: Any,
    tokenizer: Any,
    prompts: Rows = PROMPTS,
    answers: Rows = ANSWERS,
    *,
    max_length: int = ROOM,
    maker: Any = None,
    **maker_options: Any,
) -> Any:
    """The Experience for given answers, from ``maker`` or from a new maker of the models."""
    from coati_ext.testing import experience_maker, make_experience

    maker = maker or experience_maker(models, tokenizer=tokenizer, **maker_options)
    ids, mask = _padded(prompts, tokenizer, "left")
    with answering(answers, tokenizer.pad_token_id):
        return make_experience(
            maker, ids, mask, tokenizer=tokenizer, max_length=max_length, **_truth(maker, prompts)
        )


@contextmanager
def answering(answers: Rows, pad_token_id: int) -> Iterator[None]:
    """Replace upstream's ``generate``: append these answers, in order, to the prompts."""
    import torch

    coming = iter(answers)

    def generate(model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = [list(next(coming)) for _ in input_ids]
        longest = max(map(len, given))
        rows = [row + [pad_token_id] * (longest - len(row)) for row in given]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    names = ("coati.experience_maker.naive", "coati.models.base.actor", "coati.models.generation")
    for name in names:  # models.base.actor up to v0.3.0, models.generation in v0.3.1
        home = import_module(name)
        if hasattr(home, "generate"):
            break
    with mock.patch.object(home, "generate", generate):
        yield


def sampled(
    maker: Any, tokenizer: Any, prompts: Rows, side: str = "left", **generate_kwargs: Any
) -> Any:
    """The Experience that a maker returns for answers that it samples."""
    from coati_ext.testing import make_experience

    ids, mask = _padded(prompts, tokenizer, side)
    given = {**_truth(maker, prompts), **generate_kwargs}
    if hasattr(maker, "lam"):  # G3, G4: newer transformers prepare nothing for these samplers
        given.update(prepare_inputs_fn=None, update_model_kwargs_fn=None)
    return make_experience(maker, ids, mask, tokenizer=tokenizer, **given)


def _truth(maker: Any, prompts: Rows) -> Any:
    """The ``gt_answer`` argument, which unpatched G4 requires."""
    known = signature(maker.make_experience).parameters
    return {"gt_answer": [None] * len(prompts)} if "gt_answer" in known else {}


def _padded(rows: Rows, tokenizer: Any, side: str) -> Any:
    from coati_ext.testing.padding import pad_rows

    return pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side=side)


def actions_of(experience: Any) -> List[List[int]]:
    """The tokens of each row that count as actions."""
    mask = experience.action_mask
    answers = experience.sequences[:, -mask.size(1) :]
    return [tokens[real].tolist() for tokens, real in zip(answers, mask)]


def indifferent() -> Any:
    """A reward model that returns 0 for every row."""
    import torch

    class Indifferent(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return torch.zeros(len(args[0] if args else kwargs["input_ids"]))

    return Indifferent()


@contextmanager
def seeded() -> Iterator[None]:
    """Seed torch inside a ``with`` block, and restore the random state afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
