"""Measure values, returns and advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from .making import ANSWERS, PROMPTS, answered, indifferent

if TYPE_CHECKING:
    from torch import Tensor


def measure_foresight() -> float:
    """The difference of the first value between two answers to the same prompt."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    made = answered(tiny_models("opt"), tokenizer, [PROMPTS[1]] * 2)
    first = made.values.view(2, -1)[:, 0]
    return float((first[0] - first[1]).abs())


def measure_batch_mates() -> float:
    """The largest change of a value caused by other rows of the batch."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models, tokenizer = tiny_models("gpt2"), tiny_tokenizer(padding_side="left")
    together = answered(models, tokenizer)
    changes = []
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        alone = answered(models, tokenizer, [prompt], [answer])
        count = len(answer) if alone.values.dim() == 2 else 1
        pair = (item.view(len(item), -1)[:, :count] for item in (together.values, alone.values))
        batched, single = pair
        changes.append(float((batched[row] - single[0]).abs().max()))
    return max(changes)


def measure_lost_advantages() -> float:
    """The share of answers with zero advantage if critic and reward model have the same weights."""
    from coati_ext.testing import tiny_critic, tiny_models, tiny_tokenizer

    models = tiny_models("opt")._replace(critic=tiny_critic("opt", seed=2))
    made = answered(models, tiny_tokenizer(padding_side="left"))
    return float((made.advantages.abs().amax(dim=1) < 1e-6).float().mean())


def measure_old_values() -> float:
    """The largest difference of a value between the rollout and the first training step."""
    from coati_ext.testing import ppo_trainer, tiny_models, tiny_tokenizer, training_step

    tokenizer = tiny_tokenizer(padding_side="left")
    trainer = ppo_trainer(tiny_models("llama"), tokenizer=tokenizer)
    trainer.writer = None
    made = answered(None, tokenizer, maker=trainer.experience_maker)
    trainer.data_buffer.append(made)
    batch = trainer.data_buffer.collate_fn(list(trainer.data_buffer.items))
    seen = []
    loss = trainer.critic_loss_fn.forward

    def watched(values: Tensor, old_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(float(((values - old_values) * batch.action_mask).detach().abs().max()))
        return loss(values, old_values, *args, **kwargs)

    with mock.patch.object(trainer.critic_loss_fn, "forward", watched):
        training_step(trainer, batch)
    return max(seen)


def measure_return() -> float:
    """How many times too often a score is counted in the return, 0 if it is counted once.

    Measured from GAE with gamma = lambda = 1 and a critic that is always 0. A smaller configured
    gamma or lambda discounts the score, so the result is clipped at 0.
    """
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("llama")
    with torch.no_grad():
        for parameter in models.critic.value_head.parameters():
            parameter.zero_()
    tokenizer = tiny_tokenizer(padding_side="left")
    made = answered(models, tokenizer, PROMPTS[1:], ANSWERS[1:], kl_coef=0.0, gamma=1.0, lam=1.0)
    first, *_, last = made.advantages[0, : len(ANSWERS[1])]
    return max(float(first / last) - 1, 0.0)


def measure_group_noise() -> float:
    """The largest GRPO advantage among four answers to a prompt with equal rewards."""
    from coati_ext.testing import tiny_actor, tiny_models, tiny_tokenizer

    models = tiny_models("llama")._replace(
        critic=None, reward_model=indifferent(), initial_model=tiny_actor("llama", seed=5)
    )
    made = answered(
        models,
        tiny_tokenizer(padding_side="left"),
        PROMPTS,
        [[20 + i, 30 + i, 40 + i, 2] for i in range(8)],
        kl_coef=0.01,
        use_grpo=True,
        num_generation=4,
    )
    return float(made.advantages.abs().max())
