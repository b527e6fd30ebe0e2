"""Measure the rows and masks that the models receive, and the scores of the reward model."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import List
from unittest import mock

from .making import ANSWERS, PROMPTS, ROOM, Rows, actions_of, answered, sampled


def measure_score() -> float:
    """The largest difference of a score between PPO and training, with a separate pad token."""
    return _score_difference("gpt2", "pad")


def measure_score_where_eos_pads() -> float:
    """The largest difference of a score between PPO and training, with pad == EOS."""
    return _score_difference("bloom", "eos")


def _score_difference(family: str, pad: str) -> float:
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer
    from coati_ext.testing.padding import pad_rows

    models, tokenizer = tiny_models(family), tiny_tokenizer(pad=pad, padding_side="left")
    made = answered(models, tokenizer, kl_coef=0.0)
    rows = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS)]
    form = pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side="right", width=ROOM)
    with torch.no_grad():
        trained = models.reward_model(form[0], attention_mask=form[1])
    return float((made.reward - trained).abs().max())


def measure_masks_where_eos_pads() -> float:
    """The number of real tokens that are masked if pad == EOS and a prompt contains EOS."""
    return _hidden_tokens([[1, 5, 2, 9, 8], PROMPTS[1][:7]], ANSWERS, "eos")


def measure_masks_where_pad_is_sampled() -> float:
    """The number of real tokens that are masked if the pad token is sampled inside an answer."""
    return _hidden_tokens([[1, 9, 8, 7]], [[20, 0, 21, 0, 0, 22, 23, 2]], "pad")


def _hidden_tokens(prompts: Rows, answers: Rows, pad: str) -> float:
    from coati_ext.testing import tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(pad=pad, padding_side="left")
    made = answered(tiny_models("opt"), tokenizer, prompts, answers)
    real = sum(len(row) for row in [*prompts, *answers])
    return float(real - made.attention_mask.sum())


def measure_right_padded_prompts() -> float:
    """The share of greedy answers that change if their prompts are padded on the right."""
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("bloom"), tokenizer=tokenizer)
    prompts = [[1, 9, 8], *PROMPTS, [1, 5, 44, 12, 50, 11]]

    def answers(rows: Rows) -> List[List[int]]:
        longest = max(map(len, rows))
        made = sampled(maker, tokenizer, rows, "right", max_length=longest + 6, top_k=1)
        return [tokens[:5] for tokens in actions_of(made)]  # G3 may overwrite the sixth with EOS

    alone = [answer for prompt in prompts for answer in answers([prompt])]
    return sum(a != b for a, b in zip(alone, answers(prompts))) / len(prompts)


def measure_widths() -> float:
    """The number of rows lost when rollouts of two widths are batched for training."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models, tokenizer = tiny_models("opt"), tiny_tokenizer(padding_side="left")
    try:
        buffer = import_module("coati.experience_buffer").NaiveExperienceBuffer
    except ModuleNotFoundError:  # before v0.3.2
        buffer = import_module("coati.replay_buffer").NaiveReplayBuffer
    held = buffer(4, cpu_offload=False)
    answers = [answer[:3] + answer[-1:] for answer in ANSWERS]
    held.append(answered(models, tokenizer))
    held.append(answered(models, tokenizer, answers=answers, max_length=ROOM - 2))
    batch = held.collate_fn(list(held.items))
    found = [ids[mask.bool()].tolist() for ids, mask in zip(batch.sequences, batch.attention_mask)]
    expected = [p + a for each in (ANSWERS, answers) for p, a in zip(PROMPTS, each)]
    return float(sum(row not in found for row in expected))


def measure_lost_experience() -> float:
    """The share of a rank's experience that its loader leaves out, as rank 0 of two.

    Nothing is lost where coati's trainers cannot be imported: v0.2.8 beside a newer ColossalAI.
    """
    import torch.distributed as dist

    try:
        home = import_module("coati.trainer.strategies.ddp")
    except ImportError:
        return 0.0

    class Buffer(list):  # type: ignore[type-arg]
        sample_batch_size = 1

        def collate_fn(self, items: List[int]) -> int:
            return items[0]

    with mock.patch.object(dist, "get_world_size", return_value=2):
        strategy = home.DDPStrategy.__new__(home.DDPStrategy)
        if hasattr(home, "TorchDDPPlugin"):
            strategy.plugin = home.TorchDDPPlugin()
        trained = set(strategy.setup_dataloader(Buffer(range(8))))
    return 1 - len(trained) / 8


def measure_inference_tensors() -> float:
    """The number of tensors of an Experience that autograd refuses to save."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    made = answered(tiny_models("llama"), tiny_tokenizer(padding_side="left"))
    return float(sum(getattr(made, field.name).is_inference() for field in fields(made)))
