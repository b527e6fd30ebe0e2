"""Ranks of unequal work train what one process does, and none waits for another.

Upstream's trainers under ColossalAI's own plugins, in two gloo processes. One rank has rows that
fill every column, so that its batch has no pads at all, and the other has short ones; where
gradients accumulate they change places. No row is on both ranks, so a gradient that was not reduced
is that of other rows.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple
from unittest import mock

import pytest
import torch
from torch import Tensor

import coati_ext
from coati_ext.launch.installation import version_of
from coati_ext.patches.rollout import steps
from coati_ext.rollout import inside, log_probs
from coati_ext.testing import (
    Models,
    cpu_only,
    cpu_plugins,
    make_experience,
    ppo_trainer,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
    training_step,
)
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.preferences import PLAIN
from coati_ext.testing.training import has_strategies, local_booster
from helpers.processes import on_two_ranks
from helpers.scenes import scripted
from helpers.strategies import (
    DTYPES,
    LACKING,
    RECENT,
    ROWS,
    WRAPPINGS,
    Case,
    backbone_of,
    bare_model,
    boost,
    frame_of,
    largest,
    outputs_of,
    runnable,
    sgd_of,
    strategy_of,
    tell_what_is_lacking,
    weights_of,
)
from helpers.trainers import known_to_strategies

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(version_of("colossalai") is None, reason="colossalai is not installed"),
]

COLUMNS = 40  # of a row of preferences
WIDTH, LONGEST = 24, 8  # of prompts, and of answers
HEAD = [*range(10, 30)]  # what some prompts share
PROMPTS = {
    "full": [[1, *HEAD, 40, 41, 42], [1, *HEAD, 43, 44, 45], [*range(5, 29)], [*range(25, 49)]],
    "short": [[1, *HEAD], [1, *HEAD, 9], [1, 5], [1, 2, 7]],
}
ANSWERS = {
    "full": [[*range(first, first + LONGEST)] for first in (3, 13, 23, 33)],
    "short": [[20, 21, 2], [22, 2], [23, 24, 25, 26, 2], [2]],
}


def pair(prompt: int, chosen: int, rejected: int) -> Dict[str, str]:
    """Of so many words."""

    def words(first: int, count: int) -> str:
        return " ".join(PLAIN[(first + 3 * place) % len(PLAIN)] for place in range(count))

    answers = {"chosen": " " + words(5, chosen), "rejected": " " + words(6, rejected)}
    return {"prompt": words(prompt, prompt), **answers}


PAIRS = {
    "full": [pair(20, 30, 25), pair(30, 30, 30)],
    "short": [pair(20, 5, 2), pair(3, 1, 8)],
}


class Setting(NamedTuple):
    """How models are wrapped, and on what they are trained."""

    booster: Any
    optimizer: Any
    dtype: torch.dtype
    batches: int = 1
    known: bool = True  # whether it is known how the models attend

    def work_of(self, rank: int) -> List[str]:
        """What each batch of a rank is."""
        return [("full", "short")[(rank + batch) % 2] for batch in range(self.batches)]

    def made(self, model: Any) -> Any:
        # Of one layer more than attend, as if one of them mixed its tokens in another way.
        backbone_of(model).config.num_hidden_layers += not self.known
        return model.to(self.dtype)


def reward_model(rank: int, setting: Setting) -> Dict[str, Tensor]:
    """What a step of the `RewardModelTrainer` takes off the weights."""
    model = setting.made(tiny_reward_model("llama", seed=3))
    before = weights_of(model)
    wrapped = train_reward_model(
        model,
        [pair for kind in setting.work_of(rank) for pair in PAIRS[kind]],
        tokenizer=tiny_tokenizer(),
        batch_size=2,
        lr=1.0,
        max_length=COLUMNS,
        shuffle=False,
        optimizer=setting.optimizer,
        booster=setting.booster,
        accumulation_steps=setting.batches,
    )
    return {key: before[key] - item for key, item in weights_of(wrapped).items()}


def actor_and_critic(rank: int, setting: Setting) -> Dict[str, Tensor]:
    """What a step of PPO takes off the weights, with the experience that these made."""
    tokenizer = tiny_tokenizer(padding_side="left")
    models = Models(*map(setting.made, tiny_models("llama")))
    before = {name: weights_of(getattr(models, name)) for name in ("actor", "critic")}
    more = {"accumulation_steps": setting.batches} if setting.batches > 1 else {}
    trainer = ppo_trainer(
        models,
        tokenizer=tokenizer,
        lr=1.0,
        optimizer=setting.optimizer,
        booster=setting.booster,
        **more,
    )
    made = []
    for kind in setting.work_of(rank):
        ids, mask = pad_rows(PROMPTS[kind], pad_token_id=0, side="left", width=WIDTH)
        with scripted(ANSWERS[kind]):
            made.append(
                make_experience(
                    trainer.experience_maker,
                    ids,
                    mask,
                    tokenizer=tokenizer,
                    max_length=WIDTH + LONGEST,
                )
            )
    for experience in made:
        training_step(trainer, experience)
    return {
        f"{name} {key}": before[name][key] - item
        for name in before
        for key, item in weights_of(getattr(trainer, name)).items()
    }


TRAINED = {"reward model": reward_model, "actor and critic": actor_and_critic}


@contextmanager
def watched() -> Iterator[Dict[str, Any]]:
    """What levels the log names, and how often log-probs were computed inside a wrapped actor."""
    seen: Dict[str, Any] = {"levels": []}
    told = logging.getLogger("coati_ext.patches.token_saving.levels")
    all_logits = AssertionError("log-probabilities were taken from all logits")
    with ExitStack() as stack:

        def replace(*where: Any, **how: Any) -> Any:
            return stack.enter_context(mock.patch.object(*where, **how))

        replace(told, "info", side_effect=lambda text, *given: seen["levels"].append(text % given))
        replace(steps, "log_probs_of_actions", side_effect=all_logits)
        replace(log_probs, "_AT_ONCE", new=8)  # fewer than a rank has, so that they come in parts
        through = replace(inside, "through", wraps=inside.through)
        yield seen
    seen["inside"] = through.call_count


def on_this_rank(
    rank: int, wrappings: List[Tuple[str, str, int]], known: bool, warm_up: int, truth: str
) -> Dict[str, Any]:
    """How far gradients are from the true ones under each plugin, and what was seen on the way."""
    expected, found = torch.load(truth), {}
    with cpu_only(), cpu_plugins(), coati_ext.applied({"token_saving": {"warm_up": warm_up}}):
        for name, precision, batches in wrappings:
            # Without amp, DDP trains in the precision that the model has.
            dtype = DTYPES[precision] if name == "ddp" else torch.float32
            with strategy_of(name, precision) as booster, watched() as seen:
                setting = Setting(booster, sgd_of(name), dtype, batches, known)
                away = {
                    kind: farthest(train(rank, setting), expected[batches][kind])
                    for kind, train in TRAINED.items()
                }
            found[f"{name} {precision}"] = {"away": away, **seen}
    return found


def farthest(got: Dict[str, Tensor], truth: Dict[str, Tensor]) -> float:
    assert sorted(got) == sorted(truth)
    return max(largest(got[key] - truth[key]) for key in truth)


def in_one_process(precision: str, batches: int) -> Dict[str, Dict[str, Tensor]]:
    """The mean of what the rows of each rank lead to, with no token saved."""
    setting = Setting(local_booster(), torch.optim.SGD, DTYPES[precision], batches)
    found = {}
    off = {"token_saving": {"level": "off"}}
    with cpu_only(), cpu_plugins(), coati_ext.applied(off):
        for kind, train in TRAINED.items():
            one, other = (train(rank, setting) for rank in range(2))
            found[kind] = {key: (one[key] + other[key]) / 2 for key in one}
    return found


def compare(
    wrappings: List[Tuple[str, str, int]], folder: Any, known: bool = True, warm_up: int = 0
) -> List[str]:
    """The levels that all ranks computed by, after comparing what they trained."""
    truth = {batches: in_one_process("fp32", batches) for _, _, batches in wrappings}
    torch.save(truth, folder / "truth")
    ranks = on_two_ranks(on_this_rank, folder, wrappings, known, warm_up, str(folder / "truth"))
    levels = []
    for name, precision, batches in wrappings:
        one, other = (rank[f"{name} {precision}"] for rank in ranks)
        assert one["inside"] == other["inside"] > 0, name
        assert one["levels"] == other["levels"], name
        levels += one["levels"]
        for kind, gradients in truth[batches].items():
            size = max(map(largest, gradients.values()))
            if precision == "fp32":
                allowed = 1e-5 * size
            else:  # twice as far as one process in that precision is from float32
                allowed = 2 * farthest(in_one_process(precision, batches)[kind], gradients)
            for got in (one["away"][kind], other["away"][kind]):
                told = f"{name} {precision} {kind}: {got:.1e} of {size:.1e}, allowed {allowed:.1e}"
                assert got <= allowed < size / 4, told
    return levels


@pytest.mark.enough("G2", "G4", why="each generation's steps are compared on one rank elsewhere")
def test_ranks_of_unequal_work_train_what_one_process_does(upstream, tmp_path):
    wrappings = [
        # The trainers of G1 and G2 do not accumulate, nor does Gemini on a CPU.
        (*wrapping, 1 if has_strategies() or wrapping[0] == "gemini" else 2)
        for wrapping in known_to_strategies(runnable(WRAPPINGS))
    ]
    levels = compare(wrappings, tmp_path)
    assert set(levels) == {"token_saving computes LlamaModel by prefix"}
    tell_what_is_lacking()


def cut_in_two(rank: int) -> List[str]:
    case = Case("tensor", "fp32", "llama", "reward model")
    with cpu_only(), cpu_plugins(), coati_ext.applied(), watched() as seen:
        boosted = boost(case, bare_model(*case[2:], torch.device("cpu")))
        outputs_of(case.kind, boosted.model, frame_of(ROWS, torch.device("cpu")))
    return seen["levels"]


@pytest.mark.enough("G4", why="models are cut by ColossalAI, whatever their coati")
@pytest.mark.generations("G3", "G4")
@pytest.mark.skipif(LACKING or not RECENT, reason="needs colossalai 0.3.7 with torch 2.1")
def test_tensor_parallelism_is_told_to_be_computed_by_groups(upstream, tmp_path):
    for levels in on_two_ranks(cut_in_two, tmp_path):
        assert levels == [
            "token_saving computes LlamaModel by groups: its forward was replaced, as by tensor "
            "parallelism"
        ]


@pytest.mark.enough("G2", "G4", why="each generation's steps are compared on one rank elsewhere")
def test_ranks_that_learn_how_a_model_attends_learn_it_together(upstream, tmp_path):
    """Under Gemini a forward that one rank does not make keeps the others waiting."""
    levels = compare([("gemini", "bf16", 1)], tmp_path, known=False)
    assert len(set(levels)) == 1
    assert "by groups: 2 of its 3 layers attend" in levels[0]


@pytest.mark.enough("G4", why="the row is added within the forward of whatever wraps a model")
def test_ranks_warm_up_together_and_train_the_same(upstream, tmp_path):
    compare([("ddp", "fp32", 1), ("gemini", "bf16", 1)], tmp_path, warm_up=60)
