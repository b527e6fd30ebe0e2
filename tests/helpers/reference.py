"""What experience must be: row by row on unpadded tokens, in plain loops and float64.

Of the models only Hugging Face's own layers and coati's value heads are called, never a forward of
coati, and nothing of ``coati_ext.tensors``. A row is a prompt and its answer, both lists of token
ids; m is the number of the answer's tokens, the end token included.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

TOLERANCES = {  # of float32 models, whose values and scores spread by about 1
    "action_log_probs": 2e-5,
    "values": 2e-5,
    "reward": 2e-5,
    "kl": 2e-5,
    "advantages": 2e-4,
}


def network(model: Any) -> Any:
    """The Hugging Face model inside what coati or the test kit wrapped around it."""
    while not isinstance(model, PreTrainedModel):
        model = model.module if hasattr(model, "module") else model.model
    return model


def _logits(actor: Any, row: List[int]) -> np.ndarray:
    with torch.no_grad():
        return network(actor)(torch.tensor([row]))["logits"][0].double().numpy()


def _heads(model: Any, row: List[int]) -> np.ndarray:
    """What the value head says at each token of a row."""
    with torch.no_grad():
        hidden = network(model)(torch.tensor([row]))["last_hidden_state"]
        return model.value_head(hidden)[0, :, 0].double().numpy()


def log_probs(actor: Any, prompt: List[int], answer: List[int]) -> np.ndarray:
    """The log-probability of each token of the answer: (m,)."""
    logits = _logits(actor, prompt + answer)
    chosen = []
    for place, token in enumerate(answer):
        before = logits[len(prompt) + place - 1]
        before = before - before.max()
        chosen.append(before[token] - math.log(np.exp(before).sum()))
    return np.array(chosen)


def values(critic: Any, prompt: List[int], answer: List[int]) -> np.ndarray:
    """The value of the state before each token of the answer: (m,)."""
    heads = _heads(critic, prompt + answer)
    return np.array([heads[len(prompt) + place - 1] for place in range(len(answer))])


def score(reward_model: Any, row: List[int]) -> float:
    """The value head at the last token."""
    return float(_heads(reward_model, row)[-1])


def k3(log_ratio: np.ndarray) -> np.ndarray:
    """``exp(-x) - 1 + x``, held to 10."""
    return np.array([min(math.exp(-x) - 1 + x, 10.0) for x in log_ratio])


def gae(values: Sequence[float], rewards: Sequence[float], gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates, from the last action to the first: (m,)."""
    advantages = np.zeros(len(values))
    following_value = following_advantage = 0.0
    for t in reversed(range(len(values))):
        residual = rewards[t] + gamma * following_value - values[t]
        advantages[t] = residual + gamma * lam * following_advantage
        following_value, following_advantage = values[t], advantages[t]
    return advantages


def rewards_behind(
    values: Sequence[float], advantages: Sequence[float], gamma: float, lam: float
) -> np.ndarray:
    """The rewards from which :func:`gae` made the advantages: (m,)."""
    rewards = np.zeros(len(values))
    following_value = following_advantage = 0.0
    for t in reversed(range(len(values))):
        residual = advantages[t] - gamma * lam * following_advantage
        rewards[t] = residual - gamma * following_value + values[t]
        following_value, following_advantage = values[t], advantages[t]
    return rewards


def answer_in(tokens: List[int], prompt: List[int], stops: Sequence[Sequence[int]]) -> List[int]:
    """The sampled tokens up to the first end of a stop sequence, which may begin in the prompt."""
    for end in range(1, len(tokens) + 1):
        seen = prompt + tokens[:end]
        if any(seen[-len(stop) :] == list(stop) for stop in stops):
            return tokens[:end]
    return tokens


def greedy(
    actor: Any, prompt: List[int], room: int, stops: Sequence[Sequence[int]] = ((2,),)
) -> List[int]:
    """The likeliest next token, again and again, without a cache."""
    answer: List[int] = []
    for _ in range(room):
        answer.append(int(_logits(actor, prompt + answer)[-1].argmax()))
        if any((prompt + answer)[-len(stop) :] == list(stop) for stop in stops):
            break
    return answer


def fields_of_row(
    generation: str,
    models: Any,
    prompt: List[int],
    answer: List[int],
    *,
    kl_coef: float,
    advantage: str = "",
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Dict[str, np.ndarray]:
    """The fields of an Experience for one row, without the masks.

    Args:
        generation: G1 and G2 take the penalised score for the reward, and mean k3 for the penalty
            of an answer as one action; G3 and G4 hold the score to 5 and keep the raw one.
        models: the four of PPO.
        prompt: token ids.
        answer: token ids, at least one.
        kl_coef: weight of the penalty.
        advantage: "gae", or "sequence" for an answer as one action; by default what the generation
            has.
        gamma: discount per action.
        lam: lambda of GAE.
    """
    bandit = generation in ("G1", "G2")
    own, base = (log_probs(model, prompt, answer) for model in (models.actor, models.initial_model))
    before = values(models.critic, prompt, answer)
    scored = score(models.reward_model, prompt + answer)
    made: Dict[str, Any] = {"action_log_probs": own}
    if bandit and advantage != "gae":
        reward = scored - kl_coef * k3(own - base).mean()
        made.update(values=before[0], reward=reward, advantages=[reward - before[0]])
    else:
        rewards = -kl_coef * (own - base)
        rewards[-1] += scored if bandit else min(max(scored, -5.0), 5.0)
        made.update(
            values=before,
            reward=rewards.sum() if bandit else scored,
            advantages=gae(before, rewards, gamma, lam),
        )
    if not bandit:
        made["kl"] = k3(own - base)
    return {name: np.asarray(item) for name, item in made.items()}


def fields_of_rows(
    generation: str,
    models: Any,
    prompts: Sequence[List[int]],
    answers: Sequence[List[int]],
    **settings: Any,
) -> List[Dict[str, np.ndarray]]:
    """:func:`fields_of_row` of each row."""
    return [
        fields_of_row(generation, models, prompt, answer, **settings)
        for prompt, answer in zip(prompts, answers)
    ]


def wrong_fields(experience: Any, truth: Sequence[Dict[str, np.ndarray]]) -> Dict[str, float]:
    """The fields that are further from the truth than they may be, and how far.

    Action column j belongs to the answer's token j; what is beyond an answer is left out.
    """
    wrong: Dict[str, float] = {}
    for i, row in enumerate(truth):
        for name, expected in row.items():
            got = getattr(experience, name)[i].double().numpy()
            got = got[: expected.size] if expected.ndim else got
            away = float(np.abs(got - expected).max()) if got.shape == expected.shape else math.inf
            if not away <= TOLERANCES[name]:
                wrong[name] = max(away, wrong.get(name, 0.0))
    return wrong


def assert_frame(
    experience: Any,
    prompts: Sequence[List[int]],
    answers: Sequence[List[int]],
    pad_token_id: int,
) -> None:
    """Check the sequences and both masks, and that nothing stands where there is no action.

    Prompts end and answers start in one column, action column j is sequence column S - A + j, and
    the masks cover the prompt and the answer with its end token, whatever its tokens are.
    """
    rows, columns = experience.action_log_probs.shape
    start = experience.sequences.size(1) - columns
    assert rows == len(prompts)
    assert experience.action_mask.shape == (rows, columns)
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        pads, rest = start - len(prompt), columns - len(answer)
        row = [pad_token_id] * pads + prompt + answer + [pad_token_id] * rest
        assert experience.sequences[i].tolist() == row
        real = [0] * pads + [1] * len(prompt + answer) + [0] * rest
        assert experience.attention_mask[i].tolist() == real
        assert experience.action_mask[i].tolist() == [True] * len(answer) + [False] * rest
        for name in TOLERANCES:
            column = getattr(experience, name, None)
            if column is not None and column.shape == (rows, columns):
                assert not column[i, len(answer) :].any(), name
