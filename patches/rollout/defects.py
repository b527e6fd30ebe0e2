"""What ``doctor --live`` measures of rollouts and PPO steps, each through the installed coati.

Most measures replace upstream's ``generate`` by one that appends given answers: what is made of an
answer is measured then, not what is sampled. Letters: B rows, A action columns.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Sequence
from unittest import mock

from coati_ext import Defect, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_Rows = Sequence[Sequence[int]]

_PROMPTS = [[1, 9, 8, 7], [1, 14, 6, 33, 21, 40, 17, 30]]
_ANSWERS = [[20, 21, 22, 2], [29, 30, 31, 32, 33, 34, 2]]
_ROOM = 24  # columns for a prompt and its answer
_ALL, _WHOLE, _TOKENS = ("G1", "G2", "G3", "G4"), ("G1", "G2"), ("G3", "G4")

_DEFECTS = (
    (
        "reward in PPO",
        "largest difference of a score from that of the same row in training form, GPT-2",
        _ALL,
        "measure_score",
    ),
    (
        "reward in PPO, pad == eos",
        "largest difference of a score from that of the same row in training form, BLOOM",
        ("G1", "G2", "G4"),  # in G3 the pad attended in place of the end token is that token
        "measure_score_where_eos_pads",
    ),
    (
        "masked tokens, pad == eos",
        "real tokens hidden from the models, of 23",
        _ALL,
        "measure_masks_where_eos_pads",
    ),
    (
        "masked tokens, pad sampled",
        "real tokens hidden from the models, of 12",
        _ALL,
        "measure_masks_where_pad_is_sampled",
    ),
    (
        "right-padded prompts",
        "share of greedy answers changed by padding their prompts on the right, BLOOM",
        _ALL,
        "measure_right_padded_prompts",
    ),
    (
        "value knows answer",
        "difference of the first value between two answers to one prompt",
        _ALL,
        "measure_foresight",
    ),
    (
        "value in a batch",
        "largest change of a value by batch mates, GPT-2",
        _ALL,
        "measure_batch_mates",
    ),
    (
        "nothing to learn",
        "share of answers without advantage when the critic begins as the reward model",
        _WHOLE,
        "measure_lost_advantages",
    ),
    (
        "values at step 0",
        "largest change of a value from rollout to first training step, no update between",
        _TOKENS,
        "measure_old_values",
    ),
    (
        "old log-probs",
        "largest difference of a stored log-probability from the sampler's, nats, GPT-2",
        _ALL,
        "measure_old_log_probs",
    ),
    (
        "ratio with dropout",
        "largest |policy ratio - 1| before the first update, OPT with dropout",
        _ALL,
        "measure_dropout",
    ),
    (
        "KL penalty explodes",
        "nats a token by which the penalty of an unlikely answer exceeds 10",
        _WHOLE,
        "measure_penalty",
    ),
    (
        "score per token",
        "times that the score of an answer of 7 tokens is counted too often",
        _TOKENS,
        "measure_return",
    ),
    (
        "negative KL",
        "lowest logged KL of an action if it is below zero, nats",
        _TOKENS,
        "measure_logged_kl",
    ),
    (
        "repeated rollouts",
        "share of answers that the next rollout of the same prompts samples again",
        _TOKENS,
        "measure_repeats",
    ),
    (
        "no stop_token_ids",
        "answers lost, of 2, when stop_token_ids is None",
        _TOKENS,
        "measure_no_stops",
    ),
    ("no gt_answer", "answers lost, of 2, when gt_answer is left out", ("G4",), "measure_no_truth"),
    (
        "pads trained, no room",
        "pads among the actions when max_new_tokens does not fit into max_length",
        _TOKENS,
        "measure_pads_without_room",
    ),
    (
        "pads trained, cut-off",
        "pads among the actions of answers cut off before max_length",
        ("G4",),
        "measure_pads_after_cut",
    ),
    (
        "rows of two widths",
        "rows lost, of 4, when two rollouts are batched for training",
        _ALL,
        "measure_widths",
    ),
    (
        "inference tensors",
        "tensors of an Experience that no step can train on without a copy",
        ("G4",),
        "measure_inference_tensors",
    ),
)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for name, summary, generations, measure in _DEFECTS:
        register(Defect(name, "rollout", summary, generations, f"{__name__}:{measure}"))
    register(
        Defect(
            "GRPO noise",
            "rollout",
            "largest advantage among answers of equal reward, kl_coef 0.01",
            ("G4",),
            f"{__name__}:measure_group_noise",
            tolerance=0.05,  # what that penalty itself amounts to
        )
    )


def measure_score() -> float:
    """The largest difference of a score in PPO from training, with a pad token of its own."""
    return _score_difference("gpt2", "pad")


def measure_score_where_eos_pads() -> float:
    """The largest difference of a score in PPO from training, when the end token pads."""
    return _score_difference("bloom", "eos")


def _score_difference(family: str, pad: str) -> float:
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer
    from coati_ext.testing.padding import pad_rows

    models, tokenizer = tiny_models(family), tiny_tokenizer(pad=pad, padding_side="left")
    made = _answered(models, tokenizer, kl_coef=0.0)
    rows = [prompt + answer for prompt, answer in zip(_PROMPTS, _ANSWERS)]
    form = pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side="right", width=_ROOM)
    with torch.no_grad():
        trained = models.reward_model(form[0], attention_mask=form[1])
    return float((made.reward - trained).abs().max())


def measure_masks_where_eos_pads() -> float:
    """The number of real tokens that are masked when the end token pads and stands in a prompt."""
    return _hidden_tokens([[1, 5, 2, 9, 8], _PROMPTS[1][:7]], _ANSWERS, "eos")


def measure_masks_where_pad_is_sampled() -> float:
    """The number of real tokens that are masked when the pad is sampled inside an answer."""
    return _hidden_tokens([[1, 9, 8, 7]], [[20, 0, 21, 0, 0, 22, 23, 2]], "pad")


def _hidden_tokens(prompts: _Rows, answers: _Rows, pad: str) -> float:
    from coati_ext.testing import tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(pad=pad, padding_side="left")
    made = _answered(tiny_models("opt"), tokenizer, prompts, answers)
    real = sum(len(row) for row in [*prompts, *answers])
    return float(real - made.attention_mask.sum())


def measure_right_padded_prompts() -> float:
    """The share of greedy answers that are others when their prompts are padded on the right."""
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("bloom"), tokenizer=tokenizer)
    prompts = [[1, 9, 8], *_PROMPTS, [1, 5, 44, 12, 50, 11]]

    def answers(rows: _Rows) -> List[List[int]]:
        longest = max(map(len, rows))
        made = _sampled(maker, tokenizer, rows, "right", max_length=longest + 6, top_k=1)
        return [tokens[:5] for tokens in _actions(made)]  # G3 may write an end over the sixth

    alone = [answer for prompt in prompts for answer in answers([prompt])]
    return sum(a != b for a, b in zip(alone, answers(prompts))) / len(prompts)


def measure_foresight() -> float:
    """The difference of the first value between two answers to one prompt."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    made = _answered(tiny_models("opt"), tokenizer, [_PROMPTS[1]] * 2)
    first = made.values.view(2, -1)[:, 0]
    return float((first[0] - first[1]).abs())


def measure_batch_mates() -> float:
    """The largest change of a value by batch mates."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models, tokenizer = tiny_models("gpt2"), tiny_tokenizer(padding_side="left")
    together = _answered(models, tokenizer)
    changes = []
    for row, (prompt, answer) in enumerate(zip(_PROMPTS, _ANSWERS)):
        alone = _answered(models, tokenizer, [prompt], [answer])
        count = len(answer) if alone.values.dim() == 2 else 1
        pair = (item.view(len(item), -1)[:, :count] for item in (together.values, alone.values))
        batched, single = pair
        changes.append(float((batched[row] - single[0]).abs().max()))
    return max(changes)


def measure_lost_advantages() -> float:
    """The share of answers without advantage when critic and reward model have the same weights."""
    from coati_ext.testing import tiny_critic, tiny_models, tiny_tokenizer

    models = tiny_models("opt")._replace(critic=tiny_critic("opt", seed=2))
    made = _answered(models, tiny_tokenizer(padding_side="left"))
    return float((made.advantages.abs().amax(dim=1) < 1e-6).float().mean())


def measure_old_values() -> float:
    """The largest change of a value from the rollout to the first training step."""
    from coati_ext.testing import ppo_trainer, tiny_models, tiny_tokenizer, training_step

    tokenizer = tiny_tokenizer(padding_side="left")
    trainer = ppo_trainer(tiny_models("llama"), tokenizer=tokenizer)
    trainer.writer = None
    made = _answered(None, tokenizer, maker=trainer.experience_maker)
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


def measure_old_log_probs() -> float:
    """The largest difference of a stored log-probability from that of the row alone, unpadded."""
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")
    made = _answered(models, tiny_tokenizer(padding_side="left"))
    differences = []
    for stored, prompt, answer in zip(made.action_log_probs, _PROMPTS, _ANSWERS):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            alone = _log_probs(models.actor, ids, torch.ones_like(ids), len(answer))
        differences.append(float((stored[: len(answer)] - alone[0]).abs().max()))
    return max(differences)


def measure_dropout() -> float:
    """The largest distance of a policy ratio from 1 before the first update, with dropout."""
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("opt")
    for module in models.actor.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.1
    disable = getattr(import_module("coati.models"), "disable_dropout", None)
    if disable is not None:  # which the scripts of G3 and G4 call
        disable(models.actor)
    made = _answered(models, tiny_tokenizer(padding_side="left"))
    models.actor.train()
    with torch.no_grad(), _seeded():
        new = _log_probs(
            models.actor, made.sequences, made.attention_mask, made.action_log_probs.size(1)
        )
    ratio = ((new - made.action_log_probs) * made.action_mask).exp()
    return float((ratio - 1).abs().max())


def measure_penalty() -> float:
    """The nats by which the KL penalty of an answer that the actor finds unlikely is over 10."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")._replace(reward_model=_indifferent())
    _sharpen(models.actor)
    made = _answered(models, tiny_tokenizer(padding_side="left"), kl_coef=0.1)
    per_token = -made.reward / 0.1 / made.action_mask.sum(dim=1)
    return float((per_token - 10).max().clamp(min=0))


def measure_logged_kl() -> float:
    """The lowest logged KL of actions that the reference model finds unlikely, if below zero."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")
    _sharpen(models.initial_model)
    made = _answered(models, tiny_tokenizer(padding_side="left"))
    return float(made.kl.min().clamp(max=0))


def measure_return() -> float:
    """How often a score counts beyond once, read off GAE(1, 1) with a critic that knows nothing.

    A smaller gamma or lambda, which the configuration may have, counts it less than once.
    """
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("llama")
    with torch.no_grad():
        for parameter in models.critic.value_head.parameters():
            parameter.zero_()
    tokenizer = tiny_tokenizer(padding_side="left")
    made = _answered(models, tokenizer, _PROMPTS[1:], _ANSWERS[1:], kl_coef=0.0, gamma=1.0, lam=1.0)
    first, *_, last = made.advantages[0, : len(_ANSWERS[1])]
    return max(float(first / last) - 1, 0.0)


def measure_repeats() -> float:
    """The share of answers that the next rollout of the same prompts samples again."""
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    with _seeded():
        first, second = (
            _actions(_sampled(maker, tokenizer, _PROMPTS, max_length=_ROOM)) for _ in range(2)
        )
    return sum(a == b for a, b in zip(first, second)) / len(first)


def measure_no_stops() -> float:
    """The number of answers lost when stop_token_ids is None."""
    return _lost_answers(stop_token_ids=None)


def measure_no_truth() -> float:
    """The number of answers lost when gt_answer is left out."""
    return _lost_answers(gt_answer=None)


def _lost_answers(**generate_kwargs: Any) -> float:
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    with _seeded():  # answers of four tokens, which are cut off
        made = _sampled(maker, tokenizer, _PROMPTS, max_length=12, **generate_kwargs)
    return float(len(_PROMPTS) - len(made.sequences))


def measure_pads_without_room() -> float:
    """The number of pads among the actions when max_new_tokens does not fit."""
    return _pads_among_actions(max_new_tokens=12)


def measure_pads_after_cut() -> float:
    """The number of pads among the actions of answers of three tokens."""
    return _pads_among_actions(max_new_tokens=3)


def _pads_among_actions(max_new_tokens: int) -> float:
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    made = _sampled(
        maker, tokenizer, _PROMPTS, max_length=16, max_new_tokens=max_new_tokens, top_k=1
    )
    return float(sum(tokens.count(tokenizer.pad_token_id) for tokens in _actions(made)))


def measure_widths() -> float:
    """The number of rows lost when rollouts of two widths are batched for training."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models, tokenizer = tiny_models("opt"), tiny_tokenizer(padding_side="left")
    try:
        buffer = import_module("coati.experience_buffer").NaiveExperienceBuffer
    except ModuleNotFoundError:  # before v0.3.2
        buffer = import_module("coati.replay_buffer").NaiveReplayBuffer
    held = buffer(4, cpu_offload=False)
    answers = [answer[:3] + answer[-1:] for answer in _ANSWERS]
    held.append(_answered(models, tokenizer))
    held.append(_answered(models, tokenizer, answers=answers, max_length=_ROOM - 2))
    batch = held.collate_fn(list(held.items))
    found = [ids[mask.bool()].tolist() for ids, mask in zip(batch.sequences, batch.attention_mask)]
    expected = [p + a for each in (_ANSWERS, answers) for p, a in zip(_PROMPTS, each)]
    return float(sum(row not in found for row in expected))


def measure_group_noise() -> float:
    """The largest GRPO advantage among four answers to a prompt that are rewarded equally."""
    from coati_ext.testing import tiny_actor, tiny_models, tiny_tokenizer

    models = tiny_models("llama")._replace(
        critic=None, reward_model=_indifferent(), initial_model=tiny_actor("llama", seed=5)
    )
    made = _answered(
        models,
        tiny_tokenizer(padding_side="left"),
        _PROMPTS,
        [[20 + i, 30 + i, 40 + i, 2] for i in range(8)],
        kl_coef=0.01,
        use_grpo=True,
        num_generation=4,
    )
    return float(made.advantages.abs().max())


def measure_inference_tensors() -> float:
    """The number of tensors of an Experience that autograd refuses to save."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    made = _answered(tiny_models("llama"), tiny_tokenizer(padding_side="left"))
    return float(sum(getattr(made, field.name).is_inference() for field in fields(made)))


def _answered(
    models: Any,
    tokenizer: Any,
    prompts: _Rows = _PROMPTS,
    answers: _Rows = _ANSWERS,
    *,
    max_length: int = _ROOM,
    maker: Any = None,
    **maker_options: Any,
) -> Any:
    """The Experience that a maker, or one of the models, makes of given answers."""
    from coati_ext.testing import experience_maker, make_experience

    maker = maker or experience_maker(models, tokenizer=tokenizer, **maker_options)
    ids, mask = _padded(prompts, tokenizer, "left")
    with _answering(answers, tokenizer.pad_token_id):
        return make_experience(
            maker, ids, mask, tokenizer=tokenizer, max_length=max_length, **_truth(maker, prompts)
        )


@contextmanager
def _answering(answers: _Rows, pad_token_id: int) -> Iterator[None]:
    """Let upstream's ``generate`` append these answers to the prompts, one after the other."""
    import torch

    coming = iter(answers)

    def generate(model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = [list(next(coming)) for _ in input_ids]
        longest = max(map(len, given))
        rows = [row + [pad_token_id] * (longest - len(row)) for row in given]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    names = ("coati.experience_maker.naive", "coati.models.base.actor", "coati.models.generation")
    for name in names:  # the last two up to v0.3.0 and in v0.3.1
        home = import_module(name)
        if hasattr(home, "generate"):
            break
    with mock.patch.object(home, "generate", generate):
        yield


def _sampled(
    maker: Any, tokenizer: Any, prompts: _Rows, side: str = "left", **generate_kwargs: Any
) -> Any:
    """The Experience that a maker makes of answers that it samples."""
    from coati_ext.testing import make_experience

    ids, mask = _padded(prompts, tokenizer, side)
    given = {**_truth(maker, prompts), **generate_kwargs}
    if hasattr(maker, "lam"):  # G3, G4: newer transformers prepare nothing for these samplers
        given.update(prepare_inputs_fn=None, update_model_kwargs_fn=None)
    return make_experience(maker, ids, mask, tokenizer=tokenizer, **given)


def _truth(maker: Any, prompts: _Rows) -> Any:
    """What G4 cannot do without unless it is patched."""
    known = signature(maker.make_experience).parameters
    return {"gt_answer": [None] * len(prompts)} if "gt_answer" in known else {}


def _padded(rows: _Rows, tokenizer: Any, side: str) -> Any:
    from coati_ext.testing.padding import pad_rows

    return pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side=side)


def _actions(experience: Any) -> List[List[int]]:
    """The tokens of each row that count as actions."""
    mask = experience.action_mask
    answers = experience.sequences[:, -mask.size(1) :]
    return [tokens[real].tolist() for tokens, real in zip(answers, mask)]


def _log_probs(actor: Any, ids: Tensor, mask: Tensor, actions: int) -> Tensor:
    """Log-probabilities (B, A) as upstream's trainers compute them."""
    if "num_actions" in signature(actor.forward).parameters:  # before v0.3.1
        log_probs: Tensor = actor(ids, actions, attention_mask=mask)
        return log_probs
    logits = actor(ids, attention_mask=mask)["logits"][:, -actions - 1 : -1]
    log_probs = logits.log_softmax(dim=-1).gather(-1, ids[:, -actions:, None]).squeeze(-1)
    return log_probs


def _indifferent() -> Any:
    """A reward model that gives every row 0."""
    import torch

    class Indifferent(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return torch.zeros(len(args[0] if args else kwargs["input_ids"]))

    return Indifferent()


def _sharpen(model: Any) -> None:
    """Let a GPT-2 be so sure of itself that it finds almost every token impossible."""
    import torch

    norm = next(part for name, part in model.named_modules() if name.endswith("ln_f"))
    with torch.no_grad():
        norm.weight.mul_(100)


@contextmanager
def _seeded() -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
