"""Three made-up tasks whose true score is a rule, and what is alike for whoever learns them.

The rule is the reward model, so that nothing but the PPO under test decides how much is learnt. The
policy is a tiny GPT-2, fine-tuned on answers that know nothing of the score; one word is one token.
No coati is imported here. Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch
import transformers
from torch import Tensor, nn

from coati_ext.testing import tiny_config, tiny_tokenizer
from coati_ext.testing.preferences import BAD, GOOD, PLAIN, TURN

PROMPT, ANSWER = 8, 16  # longest, in tokens
ASKED = 256  # prompts whose answers are scored
WEIGHED, WANTED = 4, 4  # words that count in "credit", and that "end" asks for
TOPICS = dict(zip(PLAIN[:4], (PLAIN[first : first + 5] for first in range(4, 24, 5))))
SAID = tuple(word for words in TOPICS.values() for word in words)

Words = Sequence[str]


class Task(NamedTuple):
    """What is asked, what is answered before any PPO, and what an answer is worth."""

    best: float
    """The highest score."""
    score: Callable[[Words, Words, bool], float]
    """Of the words of a prompt and of its answer, and of whether the answer has an end."""
    answer: Callable[[random.Random, Words], List[str]]
    """To a prompt, for fine-tuning; one of ANSWER words or more is cut there and has no end."""
    topic: bool = False
    """Whether the word before the mark of a turn is one of TOPICS."""


def credit(_: Words, answer: Words, ended: bool) -> float:
    """0.4 for each good word among the first four, less 0.4 for each bad one; the rest is noise."""
    return 0.4 * sum((word in GOOD) - (word in BAD) for word in answer[:WEIGHED])


def end(_: Words, answer: Words, ended: bool) -> float:
    """Good words less bad ones, as a share; less 1/12 for each word off four, less 1 if cut off."""
    share = sum((word in GOOD) - (word in BAD) for word in answer) / max(len(answer), 1)
    return share - abs(len(answer) - WANTED) / 12 - (not ended)


def context(prompt: Words, answer: Words, ended: bool) -> float:
    """Words of the prompt's topic, as a share of the answer or of four words if it has fewer."""
    right = TOPICS[prompt[-2]]
    return sum(word in right for word in answer) / max(len(answer), WANTED)


def _words(draw: random.Random, longest: int, special: Words) -> List[str]:
    """1 to ``longest`` words, half of them special."""
    count = draw.randint(1, longest)
    return [draw.choice(special if draw.random() < 0.5 else PLAIN[24:]) for _ in range(count)]


def _hinted(draw: random.Random, asked: Words) -> List[str]:
    """Five in eight special words are of the prompt's topic, where chance would make it two."""
    return _words(draw, ANSWER - 1, SAID + 4 * TOPICS[asked[-2]])


TASKS = {
    "credit": Task(0.4 * WEIGHED, credit, lambda draw, _: _words(draw, ANSWER - 1, GOOD + BAD)),
    "end": Task(1.0, end, lambda draw, _: _words(draw, 3 * ANSWER, GOOD + BAD)),
    "context": Task(1.0, context, _hinted, topic=True),
}


def prompt(task: Task, draw: random.Random) -> str:
    """Plain words, a topic if the task has one, and the mark of a turn."""
    words = [draw.choice(PLAIN[24:]) for _ in range(draw.randint(1, PROMPT - 2))]
    topic = [draw.choice(list(TOPICS))] if task.topic else []
    return " ".join([*words, *topic, TURN])


class Rule(nn.Module):
    """A reward model that is the task's own score, whatever the padding."""

    def __init__(self, task: Task, tokenizer: Any) -> None:
        super().__init__()
        self._task, self._words = task, tokenizer.convert_ids_to_tokens(range(len(tokenizer)))

    def of(self, row: Sequence[int]) -> float:
        """The score of one row of ids; a full answer without an end was cut off."""
        words = [self._words[number] for number in row]
        turn = words.index(TURN)
        asked = [word for word in words[: turn + 1] if not word.startswith("<")]
        said = words[turn + 1 :][:ANSWER]
        ended = "<eos>" in said or len(said) < ANSWER
        said = said[: said.index("<eos>")] if "<eos>" in said else said
        return self._task.score(asked, [word for word in said if word != "<pad>"], ended)

    def forward(
        self, ids: Optional[Tensor] = None, attention_mask: Optional[Tensor] = None, **given: Any
    ) -> Tensor:
        """Scores (B,) of rows (B, S), which generations name differently."""
        rows = ids if ids is not None else given.get("input_ids", given.get("sequences"))
        assert rows is not None
        return torch.tensor([self.of(row) for row in rows.tolist()])


def start(name: str, seed: int, kept: Path) -> Mapping[str, Tensor]:
    """The weights of a fine-tuned policy, the same whoever goes on from there.

    Args:
        name: of the task.
        seed: of weights and texts.
        kept: the folder in which they are kept for whoever comes next.
    """
    file = kept / f"{name}-{seed}.pt"
    if not file.exists():
        kept.mkdir(parents=True, exist_ok=True)
        torch.save(_fine_tuned(name, seed), file)
    weights: Mapping[str, Tensor] = torch.load(file)
    return weights


def _fine_tuned(name: str, seed: int) -> Mapping[str, Tensor]:
    task, tokenizer, draw = TASKS[name], tiny_tokenizer(), random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_policy(len(tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        asked = [prompt(task, draw).split() for _ in range(32)]
        said = [[*task.answer(draw, words), "<eos>"][:ANSWER] for words in asked]
        texts = [" ".join(both) for both in ([*one, *other] for one, other in zip(asked, said))]
        rows = tokenizer(texts, padding=True, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        logits = model(**rows)["logits"][:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights: Mapping[str, Tensor] = model.state_dict()
    return weights


def new_policy(vocabulary: int) -> Any:
    """A tiny GPT-2 with random weights, in eval mode."""
    return transformers.GPT2LMHeadModel(tiny_config("gpt2", vocab_size=vocabulary)).eval()


def body(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Of a policy's weights those of its body, under the names that the body alone has."""
    start = "transformer."
    return {key[len(start) :]: item for key, item in weights.items() if key.startswith(start)}


def value_head(width: int, seed: int) -> Tensor:
    """Weights (1, H) of a new value head: deviation 1 / sqrt(H + 1), as in arXiv 2403.17031."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, width, generator=draw) / math.sqrt(width + 1)


def batch(tokenizer: Any, texts: Sequence[str]) -> Dict[str, Tensor]:
    """Ids and mask of prompts, (B, PROMPT) each."""
    rows = tokenizer(list(texts), padding="max_length", max_length=PROMPT, return_tensors="pt")
    return {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}


def evaluate(name: str, policy: Any, reference: Any) -> Dict[str, float]:
    """Sample an answer to each of ASKED prompts, by Hugging Face's `generate`, and score it.

    Returns:
        Means over the answers: "score", "words", "ended" (the share with an end) and "kl" to the
        reference (nats: log-ratios of the sampled tokens, summed).
    """
    task, tokenizer = TASKS[name], tiny_tokenizer(padding_side="left")
    draw = random.Random(0)
    asked = batch(tokenizer, [prompt(task, draw) for _ in range(ASKED)])
    training = policy.training
    policy.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = policy.generate(
            **asked,
            do_sample=True,
            top_k=0,
            max_new_tokens=ANSWER,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        answers = rows[:, PROMPT:]
        real = (answers != tokenizer.pad_token_id).long()
        mask = torch.cat([asked["attention_mask"], real], dim=1)
        inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        log, other = (
            model(rows, **inputs)["logits"][:, PROMPT - 1 : -1].log_softmax(dim=-1)
            for model in (policy, reference)
        )
        ratio = (log - other).gather(2, answers.unsqueeze(2)).squeeze(2) * real
    policy.train(training)
    ends = (answers == tokenizer.eos_token_id).any(dim=1)
    return {
        "score": float(Rule(task, tokenizer)(rows).mean()),
        "words": float((real.sum(dim=1) - ends.long()).float().mean()),
        "ended": float(ends.float().mean()),
        "kl": float(ratio.sum(dim=1).mean()),
    }
