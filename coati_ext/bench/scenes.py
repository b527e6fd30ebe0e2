"""The steps that are measured: upstream's own code, with the patches on or off, and their floors.

A floor is the same transformers model on a dense batch of as many tokens: no pads, no mask, and
logits of actions only. No way of saving tokens can be faster.

Letters: B rows, A action columns, P prompt columns, H hidden.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from coati_ext.bench.lengths import Pair, counts, padded
from coati_ext.bench.measure import Step
from coati_ext.bench.source import Source, language_model
from coati_ext.errors import InputError
from coati_ext.rollout.models import accepts
from coati_ext.testing.rollouts import (
    Models,
    default_generate_kwargs,
    experience_maker,
    ppo_trainer,
    training_step,
)
from coati_ext.testing.training import has_strategies

ACTIONS = 256  # the longest answer of a rollout
_AT_ONCE = 128  # tokens, whose logits a floor without gradients holds


@dataclass(frozen=True)
class Scene:
    """A stage of training, with one batch."""

    name: str
    prepare: Callable[[str], Step]
    """The step in the state of that name, which is in force; caches what a state needs once."""
    floors: Dict[str, Callable[[], Step]]
    errors: Callable[[Any], Dict[str, float]]
    """How far a step's result is from that of each row alone and unpadded."""
    embeddings: Sequence[nn.Module]
    """Of all models: what is asked of them is what is computed."""
    tokens: Dict[str, int]
    """See :func:`coati_ext.bench.lengths.counts`."""


def fitted(stage: str, pairs: Sequence[Pair], length: int) -> List[Pair]:
    """Pairs that fit into a stage's columns."""
    longest = length // 2 if stage == "rm" else actions_of(length)
    return [pair.cut(length, longest) for pair in pairs]


def rows_of(stage: str, pairs: Sequence[Pair]) -> List[List[int]]:
    """The rows of a stage's batch."""
    if stage == "rm":
        return [pair.rows[which] for which in (0, 1) for pair in pairs]
    return [pair.rows[0] for pair in pairs]


def actions_of(length: int) -> int:
    """A."""
    return min(ACTIONS, length // 2)


def reward_model_step(source: Source, pairs: Sequence[Pair], length: int) -> Scene:
    """Forward and backward of chosen and rejected rows, right-padded, as upstream's trainer."""
    model = source.valued("RewardModel").train()
    loss_of = import_module("coati.models").LogSigLoss()
    rows = rows_of("rm", pairs)
    half = len(pairs)
    ids, mask = (it.to(source.device) for it in padded(rows, length, source.words.pad, "right"))
    chosen, rejected = (ids[:half], mask[:half]), (ids[half:], mask[half:])
    tokens = counts(rows, length)

    def step() -> Tensor:
        if has_strategies():
            first = model(chosen[0], attention_mask=chosen[1])
            second = model(rejected[0], attention_mask=rejected[1])
        else:
            both = model(
                torch.cat([chosen[0], rejected[0]]),
                attention_mask=torch.cat([chosen[1], rejected[1]]),
            )
            first, second = both[:half], both[half:]
        _backward(loss_of(first, second).mean())
        return torch.cat([first, second]).detach()

    def prepare(_: str) -> Step:
        _forget(model)
        return step

    def floor(count: int) -> Callable[[], Step]:
        dense = _dense(source, count, len(rows))

        def dense_step() -> None:
            scores = model.value_head(_states(model.model, dense)[:, -1]).squeeze(-1)
            _backward(-logsigmoid(scores[:half] - scores[half:]).mean())

        def ready() -> Step:
            _forget(model)
            return dense_step

        return ready

    def alone() -> Tuple[Tensor, List[Tensor]]:
        _forget(model)
        found: List[Tensor] = []
        for pair in pairs:
            one, other = (_last_value(model, row, source) for row in pair.rows)
            _backward(-logsigmoid(one - other) / half)
            found += [one.detach(), other.detach()]
        return torch.stack(found[::2] + found[1::2]), _gradients(model)

    expected: List[Any] = []

    def errors(rewards: Tensor) -> Dict[str, float]:
        gradients = _gradients(model)
        if not expected:
            expected.extend(alone())
        largest = max(float(item.abs().max()) for item in expected[1])
        gap = max(_gap(one, other) for one, other in zip(gradients, expected[1]))
        return {"reward": _gap(rewards, expected[0]), "gradient": gap / largest}

    return Scene(
        "rm",
        prepare,
        _floors(tokens, floor),
        errors,
        [model.model.get_input_embeddings()],
        tokens,
    )


def scoring(source: Source, pairs: Sequence[Pair], length: int) -> Scene:
    """``make_experience`` without its sampling: four models score answers that are given."""
    models = _four(source)
    rollout = _Rollout(source, pairs, length)
    actor, reference = (language_model(it) for it in (models.actor, models.initial_model))

    makers: Dict[str, Any] = {}

    def prepare(state: str) -> Step:
        if state not in makers:
            makers[state] = experience_maker(models, tokenizer=rollout.tokenizer)
        return lambda: rollout.experience(makers[state])

    def floor(count: int) -> Callable[[], Step]:
        dense = _dense(source, count, len(pairs))
        part = round(rollout.actions / len(pairs))

        def dense_step() -> None:
            with torch.no_grad():
                for model in (actor, reference):
                    hidden = _states(model.base_model, dense)[:, -part - 1 : -1].flatten(0, 1)
                    wanted = dense[:, -part:].flatten()
                    for some, ids in zip(
                        torch.split(hidden, _AT_ONCE), torch.split(wanted, _AT_ONCE)
                    ):
                        cross_entropy(model.get_output_embeddings()(some), ids, reduction="none")
                for model in (models.critic, models.reward_model):
                    model.value_head(_states(model.model, dense))

        return lambda: dense_step

    expected: List[List[Tensor]] = []

    def errors(experience: Any) -> Dict[str, float]:
        if not expected:
            expected.extend(rollout.alone(actor, models.critic))
        log_probs, values = experience.action_log_probs, experience.values
        gaps = {"log_prob": 0.0, "value": 0.0}
        for index, (wanted_log_probs, wanted_values) in enumerate(zip(*expected)):
            size = len(wanted_log_probs)
            gap = _gap(log_probs[index, :size], wanted_log_probs)
            gaps["log_prob"] = max(gaps["log_prob"], gap)
            # One value for a whole answer is that of the state before it.
            found = values[index, :size] if values.dim() == 2 else values[index : index + 1]
            gaps["value"] = max(gaps["value"], _gap(found, wanted_values[: len(found)]))
        return gaps

    return Scene(
        "scoring",
        prepare,
        _floors(rollout.tokens, floor),
        errors,
        _embeddings(models),
        rollout.tokens,
    )


def ppo_step(source: Source, pairs: Sequence[Pair], length: int) -> Scene:
    """Upstream's training step of actor and critic, whose optimizers do nothing."""
    models = _four(source)
    rollout = _Rollout(source, pairs, length)
    actor = language_model(models.actor)
    trainers: Dict[str, Any] = {}

    def prepare(state: str) -> Step:
        if state not in trainers:
            trainers[state] = trainer = ppo_trainer(
                models, tokenizer=rollout.tokenizer, optimizer=_Still, train_batch_size=len(pairs)
            )
            buffer = _buffer(trainer)
            buffer.append(rollout.experience(trainer.experience_maker))
        trainer = trainers[state]
        buffer = _buffer(trainer)
        batch = buffer.collate_fn(buffer.items)
        batch.to_device(source.device)
        _forget(models.actor, models.critic)
        return lambda: training_step(trainer, batch)

    def floor(count: int) -> Callable[[], Step]:
        dense = _dense(source, count, len(pairs))
        part = round(rollout.actions / len(pairs))

        def dense_step() -> None:
            hidden = _states(actor.base_model, dense)[:, -part - 1 : -1].flatten(0, 1)
            logits = actor.get_output_embeddings()(hidden)
            _backward(cross_entropy(logits, dense[:, -part:].flatten()))
            values = models.critic.value_head(_states(models.critic.model, dense))
            _backward(values.square().mean())

        def ready() -> Step:
            _forget(models.actor, models.critic)
            return dense_step

        return ready

    return Scene(
        "ppo",
        prepare,
        _floors(rollout.tokens, floor),
        lambda _: {},
        _embeddings(models),
        rollout.tokens,
    )


SCENES = {"rm": reward_model_step, "scoring": scoring, "ppo": ppo_step}


class _Rollout:
    """Prompts with answers that are given, in the place of sampled ones."""

    def __init__(self, source: Source, pairs: Sequence[Pair], length: int) -> None:
        words, device = source.words, source.device
        width = actions_of(length)
        self.length = length
        self.rows = [(pair.prompt, pair.chosen) for pair in pairs]
        self.prompts, self.mask = (
            it.to(device)
            for it in padded([row[0] for row in self.rows], length - width, words.pad, "left")
        )
        answers, _ = padded([row[1] for row in self.rows], width, words.pad, "right")
        self.answers = answers.to(device)
        self.actions = sum(len(row[1]) for row in self.rows)
        self.tokens = counts(rows_of("scoring", pairs), length)
        self.tokenizer = SimpleNamespace(
            pad_token_id=words.pad,
            eos_token_id=words.eos,
            padding_side="left",
            batch_decode=lambda *_, **__: [],
            decode=lambda *_, **__: "",
        )

    def experience(self, maker: Any) -> Any:
        """Experience of these rows, by a maker of upstream's."""
        given = default_generate_kwargs(maker.actor, self.tokenizer)
        asked = signature(maker.make_experience).parameters
        if "attention_mask" in asked or not has_strategies():
            given["attention_mask"] = self.mask
        if "gt_answer" in asked:
            given["gt_answer"] = [None] * len(self.rows)
        with self._answered():
            return maker.make_experience(input_ids=self.prompts, max_length=self.length, **given)

    def alone(self, actor: Any, critic: Any) -> Tuple[List[Tensor], List[Tensor]]:
        """Log-probabilities and values of the actions of each row alone and unpadded."""
        log_probs, values = [], []
        for prompt, answer in self.rows:
            ids = torch.tensor([prompt + answer], device=self.prompts.device)
            first = len(prompt) - 1
            with torch.no_grad():
                logits = actor(ids).logits[0, first:-1].float()
                states = _states(critic.model, ids)[0, first:-1]
                found = critic.value_head(states).squeeze(-1)
            log_probs.append(-cross_entropy(logits, ids[0, first + 1 :], reduction="none"))
            values.append(found)
        return log_probs, values

    @contextmanager
    def _answered(self) -> Iterator[None]:
        naive = import_module("coati.experience_maker.naive")
        if not hasattr(naive, "generate"):
            raise InputError(
                "scoring and PPO are measured with coati from v0.3.2 on: --stage rm, layer"
            )

        def sampled(_: Any, input_ids: Tensor, *__: Any, **___: Any) -> Tensor:
            return torch.cat([input_ids, self.answers], dim=1)

        with mock.patch.object(naive, "generate", sampled):
            yield


class _Still(torch.optim.SGD):
    """Leaves weights and gradients as they are, so that every step is the same."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing."""


def _four(source: Source) -> Models:
    kinds = source.valued("Critic"), source.valued("RewardModel")
    return Models(source.actor(), *kinds, source.actor())


def _buffer(trainer: Any) -> Any:
    return trainer.data_buffer if hasattr(trainer, "data_buffer") else trainer.replay_buffer


def _embeddings(models: Models) -> List[nn.Module]:
    actors = [language_model(it) for it in (models.actor, models.initial_model)]
    backbones = [*actors, models.critic.model, models.reward_model.model]
    return [item.get_input_embeddings() for item in backbones]


def _floors(
    tokens: Dict[str, int], floor: Callable[[int], Callable[[], Step]]
) -> Dict[str, Callable[[], Step]]:
    """The floor of real tokens, and that of unique ones where rows share any."""
    found = {"floor, real tokens": floor(tokens["real"])}
    if tokens["unique"] < tokens["real"]:
        found["floor, prompts once"] = floor(tokens["unique"])
    return found


def _dense(source: Source, tokens: int, rows: int) -> Tensor:
    """Random ids (rows, tokens / rows)."""
    draw = torch.Generator().manual_seed(0)
    size = (rows, max(2, round(tokens / rows)))
    return torch.randint(0, source.words.size, size, generator=draw).to(source.device)


def _states(backbone: Any, ids: Tensor) -> Tensor:
    """Last hidden states of dense rows, without a mask."""
    inputs = {"use_cache": False} if accepts(backbone, "use_cache") else {}
    hidden: Tensor = backbone(ids, **inputs)["last_hidden_state"]
    return hidden


def _last_value(model: Any, row: Sequence[int], source: Source) -> Tensor:
    ids = torch.tensor([row], device=source.device)
    value: Tensor = model.value_head(_states(model.model, ids)[:, -1]).squeeze()
    return value


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _forget(*models: nn.Module) -> None:
    """Free the gradients of an earlier step, which would else be reused."""
    for model in models:
        for parameter in model.parameters():
            parameter.grad = None


def _gradients(model: nn.Module) -> List[Tensor]:
    return [item.grad for item in model.parameters() if item.grad is not None]


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite of nan, which the max() of Python would pass over."""
    gap = float((one.detach().float().cpu() - other.float().cpu()).abs().max())
    return math.inf if math.isnan(gap) else gap
