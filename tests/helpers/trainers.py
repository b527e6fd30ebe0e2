"""What upstream's trainers train, on any number of ranks, and how far it is from one process."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from coati_ext.testing import (
    Models,
    make_experience,
    ppo_trainer,
    preference_pairs,
    random_rows,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
    training_step,
)
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.training import local_booster
from helpers.strategies import (
    DTYPES,
    largest,
    sgd_of,
    strategy_of,
    weights_of,
)

BATCH = 4
REWARDS = "held-out rewards"
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21], [1, 2, 7]]
HELD_OUT = random_rows([4 + place % 9 for place in range(24)])


class Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype


def reward_model(
    rank: int, ranks: int, place: Place, lr: float = 0.03, **given: Any
) -> Dict[str, Tensor]:
    """The weights that the `RewardModelTrainer` leads to, and what they make of other rows."""
    tokenizer = tiny_tokenizer()
    share = BATCH // ranks
    pairs = preference_pairs(4 * BATCH)
    wrapped = train_reward_model(
        tiny_reward_model("llama", vocab_size=len(tokenizer)).to(*place),
        [pair for position, pair in enumerate(pairs) if position % BATCH // share == rank],
        tokenizer=tokenizer,
        batch_size=share,
        lr=lr,
        max_length=64,
        shuffle=False,
        **given,
    )
    rows, mask = pad_rows(HELD_OUT, pad_token_id=0, side="left")
    with torch.no_grad():
        rewards = wrapped(rows.to(place.device), attention_mask=mask.to(place.device))
    return {REWARDS: rewards.float().cpu(), **weights_of(wrapped)}


def actor_and_critic(
    rank: int, ranks: int, place: Place, lr: float = 0.03, **given: Any
) -> Dict[str, Tensor]:
    """The weights that two rounds of PPO lead to; the sampler is greedy, and answers are full."""
    tokenizer = tiny_tokenizer(padding_side="left")
    models = Models(*(model.to(*place) for model in tiny_models("gpt2")))
    trainer = ppo_trainer(models, tokenizer=tokenizer, lr=lr, **given)
    prompts, mask = pad_rows(PROMPTS, pad_token_id=0, side="left", width=6)
    for _ in range(2):
        experience = make_experience(
            trainer.experience_maker,
            prompts[rank::ranks].to(place.device),
            mask[rank::ranks].to(place.device),
            tokenizer=tokenizer,
            max_length=12,
            top_k=1,
        )
        assert experience.action_mask.all()
        experience.to_device(place.device)
        training_step(trainer, experience)
    return {
        f"{name} {key}": item
        for name in ("actor", "critic")
        for key, item in weights_of(getattr(trainer, name)).items()
    }


TRAINED: Dict[str, Callable[..., Dict[str, Tensor]]] = {
    "reward model": reward_model,
    "actor and critic": actor_and_critic,
}


def known_to_strategies(wrappings: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """Those that coati's own strategies have, too: their ZeRO is in float32 or fp16."""
    return [it for it in wrappings if not (it[0].startswith("zero") and it[1] == "bf16")]


class Expected(NamedTuple):
    """What one process makes of each kind, in float32."""

    numbers: Dict[str, Dict[str, Tensor]]
    learnt: Dict[str, Dict[str, float]]  # how far that is from where it began
    noise: Dict[str, Dict[str, Dict[str, float]]]  # how far it is in another precision


def expected(precisions: Sequence[str], device: torch.device) -> Expected:
    """By training in this process, without a plugin."""

    def train(precision: str, **given: Any) -> Dict[str, Dict[str, Tensor]]:
        place = Place(device, DTYPES[precision])
        given = {"optimizer": torch.optim.SGD, "booster": local_booster(), **given}
        return {kind: trained(0, 1, place, **given) for kind, trained in TRAINED.items()}

    def away(others: Dict[str, Dict[str, Tensor]]) -> Dict[str, Dict[str, float]]:
        return {kind: farthest(others[kind], numbers[kind]) for kind in TRAINED}

    numbers = train("fp32")
    noise = {precision: away(train(precision)) for precision in precisions if precision != "fp32"}
    return Expected(numbers, away(train("fp32", lr=0.0)), noise)


def away_from(
    numbers: Dict[str, Dict[str, Tensor]],
    wrappings: Sequence[Tuple[str, str]],
    rank: int,
    ranks: int,
    device: torch.device,
) -> Dict[str, Dict[str, float]]:
    """How far what is trained under each plugin is from these."""
    away: Dict[str, Dict[str, float]] = {}
    for name, precision in wrappings:
        for kind, train in TRAINED.items():
            given = {"optimizer": sgd_of(name)}
            with strategy_of(name, precision) as given["booster"]:
                # Without amp, DDP trains in the precision that the model has.
                dtype = DTYPES[precision] if name == "ddp" else torch.float32
                got = train(rank, ranks, Place(device, dtype), **given)
            away[f"{name} {precision} {kind}"] = farthest(got, numbers[kind])
    return away


def farthest(got: Dict[str, Tensor], truth: Dict[str, Tensor]) -> Dict[str, float]:
    """The largest difference of a reward, where there are some, and of a weight."""
    assert sorted(got) == sorted(truth)
    away = {key: largest(item - truth[key]) for key, item in got.items()}
    rewards = {REWARDS: away.pop(REWARDS)} if REWARDS in away else {}
    return {**rewards, "weights": max(away.values())}


def too_far(
    away: Dict[str, Dict[str, float]], truth: Expected, wrappings: Sequence[Tuple[str, str]]
) -> List[str]:
    """A line for everything that is further than it may be.

    In half precision that is 2.5 times as far as one process in that precision is from float32:
    steps amplify what they round, and another order of sums is another draw of it.
    """
    wrong = []
    for name, precision in wrappings:
        for kind in TRAINED:
            for what, got in away[f"{name} {precision} {kind}"].items():
                allowed = 1e-5 if precision == "fp32" else 2.5 * truth.noise[precision][kind][what]
                learnt = truth.learnt[kind][what]
                if not got <= allowed < learnt / 2:
                    wrong.append(
                        f"{name} {precision} {kind}: {what} are {got:.1e} away, allowed are "
                        f"{allowed:.1e}; learnt was {learnt:.1e}"
                    )
    return wrong
