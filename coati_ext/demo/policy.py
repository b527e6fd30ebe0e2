"""A PPO run by coati's own trainer that is told to be brief.

Letters: B rows, S sequence columns, A action columns.
"""

from __future__ import annotations

import random
import tempfile
from importlib import import_module
from typing import Any, Callable, Dict, Mapping, Sequence
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from coati_ext.demo.task import ANSWER, LENGTH, PROMPT, Brevity, answer, prompt
from coati_ext.testing.cpu import cpu_only
from coati_ext.testing.preferences import TURN
from coati_ext.testing.rollouts import ppo_trainer, tiny_models
from coati_ext.testing.text import SPECIAL, tiny_tokenizer
from coati_ext.testing.training import has_strategies

Facts = Dict[str, Any]
ROLLOUTS, ROWS = 2, 32  # rollouts an episode, answers a rollout
UPDATES, BATCH = 2, 16  # rounds over an episode's answers, answers a training step
LR, KL_COEF = 1e-3, 0.05
ASKED = 64  # prompts whose answers are counted


def learn(
    family: str,
    seed: int,
    episodes: int,
    done: Callable[[], None] = lambda: None,
    rule: Callable[[int, int], nn.Module] = Brevity,
) -> Facts:
    """Fine-tune a policy to answer in 1 to 23 words, then let PPO make it brief.

    Args:
        family: of the tiny models.
        seed: of weights, data and sampling.
        episodes: of 64 answers each.
        done: called after fine-tuning and after each episode.
        rule: makes another reward model than :class:`Brevity` from what that is made from.

    Returns:
        "words": the mean length of fresh answers, before the first episode and after each;
        "values": see :func:`_watched`.
    """
    draw = random.Random(seed)
    # As in upstream's scripts: the end token pads, on the left only where answers are sampled.
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    models = tiny_models(family, seed=seed, vocab_size=len(left), pad_token_id=left.pad_token_id)
    policy = language_model(models.actor)
    fine_tune(policy, right, random.Random(seed))
    models.initial_model.load_state_dict(models.actor.state_dict())
    judge = rule(left.convert_tokens_to_ids(TURN), len(SPECIAL))
    asked = prompt_batch(left, [prompt(draw) for _ in range(ASKED)])
    words = [_mean_words(policy, left, asked)]
    done()

    class Evaluate(import_module("coati.trainer.callbacks").Callback):  # type: ignore[misc]
        def on_episode_end(self, episode: int) -> None:
            words.append(_mean_words(policy, left, asked))
            done()

    with cpu_only(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        prompts: DataLoader[Any] = DataLoader(
            [prompt(draw) for _ in range(64 * ROWS)],  # type: ignore[arg-type]
            batch_size=ROWS,
            shuffle=True,
            collate_fn=lambda texts: prompt_batch(left, texts),
        )
        trainer = ppo_trainer(
            models._replace(reward_model=judge),
            tokenizer=left,
            lr=LR,
            save_dir=folder,
            kl_coef=KL_COEF,
            train_batch_size=BATCH,
            callbacks=[Evaluate()],
            max_length=LENGTH,
            **options_of_generation(),
        )
        values: Facts = {}
        with mock.patch.object(trainer.critic_loss_fn, "forward", _watched(trainer, values)):
            trainer.fit(
                num_episodes=episodes,
                num_collect_steps=ROLLOUTS,
                num_update_steps=UPDATES,
                prompt_dataloader=prompts,
                pretrain_dataloader=None,
            )
    return {"words": words, "values": values}


def _watched(trainer: Any, found: Facts) -> Callable[..., Any]:
    """The value loss, which notes what it is given in the first training step, before any update.

    That is "old" and "new", the values of the same actions in the rollout and in training, and
    "clip", the change from which on the loss is clipped.
    """
    loss, clip = trainer.critic_loss_fn.forward, float(trainer.critic_loss_fn.clip_eps)

    def watched(new: Tensor, old: Tensor, *given: Any, **named: Any) -> Any:
        if not found:
            real = named.get("action_mask")
            real = torch.ones_like(old, dtype=torch.bool) if real is None else real.bool()
            real = real if real.shape == old.shape else real[:, 0]
            pair = {"old": old[real].tolist(), "new": new.detach()[real].tolist()}
            found.update(pair, clip=clip)
        return loss(new, old, *given, **named)

    return watched


def fine_tune(model: Any, tokenizer: Any, draw: random.Random) -> None:
    """Teach a language model to answer in 1 to 23 words, a fifth of them good and a fifth bad."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        texts = [
            f"{prompt(draw)} {' '.join(answer(draw, 0.4, 0.5))} {tokenizer.eos_token}"
            for _ in range(32)
        ]
        rows = tokenizer(texts, padding=True, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        logits = model(**rows)["logits"]
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def sampled(model: Any, tokenizer: Any, prompts: Mapping[str, Any]) -> Tensor:
    """Answers (B, A) that Hugging Face's own ``generate`` samples, always with the same seed."""
    ids, end = prompts["input_ids"], tokenizer.eos_token_id
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows: Tensor = model.eval().generate(
            ids,
            attention_mask=prompts["attention_mask"],
            do_sample=True,
            top_k=0,
            max_new_tokens=ANSWER,
            pad_token_id=end,
            eos_token_id=end,
        )
    return rows[:, ids.size(1) :]


def _mean_words(model: Any, tokenizer: Any, prompts: Mapping[str, Any]) -> float:
    answers = sampled(model, tokenizer, prompts)
    return float((answers != tokenizer.eos_token_id).sum(dim=1).float().mean())


def options_of_generation() -> Facts:
    """What upstream's trainer needs in order to run, unpatched, on the transformers installed."""
    options: Facts = {}
    if not has_strategies():
        options["save_interval"] = 10**9  # 0, the default, divides by zero
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 42):
        options.update(prepare_inputs_fn=_whole_rows, update_model_kwargs_fn=_longer_mask)
    return options


def _whole_rows(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Facts:
    """A model's inputs while sampling: Hugging Face's, but for the cache.

    Upstream cannot hand on the caches of transformers 4.42 and later.
    """
    places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": places}


def _longer_mask(outputs: Any, model_kwargs: Facts) -> Facts:
    mask = model_kwargs["attention_mask"]
    return {**model_kwargs, "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], 1)}


def prompt_batch(tokenizer: Any, texts: Sequence[str]) -> Facts:
    """What upstream's prompt data give to its trainer: ids and mask, (B, S) each."""
    batch = tokenizer(texts, padding="max_length", max_length=PROMPT, return_tensors="pt")
    return dict(batch) if has_strategies() else {**batch, "gt_answer": [None] * len(texts)}


def language_model(actor: Any) -> Any:
    """The Hugging Face model of an actor, which G1 and G2 wrap."""
    return getattr(actor, "model", actor) if has_strategies() else actor
