"""Run the consumer of ``coati.distributed`` without Ray, vLLM and CUDA.

with cpu_only():
    consumer = grpo_consumer(model, reference, algo="GRPO", beta=0.01)
    loss = learn(consumer, sampled(model, prompts, temperature=0.6))

Letters: P prompts, G answers to each, S sequence columns, A action columns.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from coati_ext.testing.cpu import LocalBooster

_PAD, _EOS = 0, 2
_JUDGES = {
    "latex2sympy2_extended": ("NormalizationConfig",),
    "math_verify": ("ExprExtractionConfig", "LatexExtractionConfig", "parse", "verify"),
    "pyext": ("RuntimeModule",),
}


def has_distributed() -> bool:
    """Whether the importable coati has the package, and everything that it imports."""
    try:
        import_module("coati.distributed.grpo_consumer")
    except ImportError:
        return False
    return True


@contextmanager
def importable_rewards() -> Iterator[None]:
    """Let the rewards be imported where what they import to judge mathematics is not installed.

    Programs are judged without it. What stands in for it is taken away on exit.
    """
    missing = [name for name in _JUDGES if name not in sys.modules and find_spec(name) is None]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(_JUDGES[name]))
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def grpo_consumer(
    model: Any,
    reference: Any = None,
    optimizer: Any = None,
    *,
    booster: Any = None,
    zero_bubble: bool = False,
    generations: int = 4,
    batch_size: int = 1,
    minibatch_size: Optional[int] = None,
    temperature: float = 1.0,
    **grpo_config: Any,
) -> Any:
    """Return a ``GRPOConsumer`` as its constructor and ``setup`` leave it, in this process.

    Args:
        model: the policy, wrapped by the booster if there is one.
        reference: the reference model; needed unless ``beta`` is 0.
        optimizer: of the policy; plain gradient descent with a step of 1 if not given, so that an
            update moves the weights by minus the gradient.
        booster: a ColossalAI ``Booster`` with a ``HybridParallelPlugin``; if not given, a process
            has the whole model and all data.
        zero_bubble: the consumer of that package.
        generations: answers to each prompt.
        batch_size: prompts of an update, on each data-parallel rank.
        minibatch_size: prompts of a step; all if not given.
        temperature: the user's, in ``generate_config``.
        grpo_config: such as ``algo``, ``beta``, ``loss_variation``, ``train_microbatch_size``.
    """
    package = "coati.distributed.zero_bubble" if zero_bubble else "coati.distributed"
    cls = import_module(f"{package}.grpo_consumer").GRPOConsumer
    cls = getattr(getattr(cls, "__ray_metadata__", None), "modified_class", cls)
    consumer = cls.__new__(cls)
    config = {"algo": "GRPO", "beta": 0.0, **grpo_config}
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    booster = booster or WholeBooster()
    names = ("clip_eps_low", "clip_eps_high", "beta", "loss_variation")
    loss = import_module("coati.distributed.loss").PolicyLoss
    sizes = {name: getattr(booster.plugin, name) for name in ("dp_size", "tp_size", "pp_size")}
    vars(consumer).update(
        policy_model=model.train(),
        reference_model=reference,
        optimizer=optimizer,
        booster=booster,
        plugin=booster.plugin,
        **sizes,
        # There is no actor of Ray's to send signals to, as the rank that logs does.
        rank=int(zero_bubble) or torch.distributed.get_rank(),
        **_ranks(booster.plugin),
        device=torch.device("cpu"),
        num_generations=generations,
        batch_size=batch_size,
        minibatch_size=minibatch_size or batch_size,
        num_microbatches=batch_size // (minibatch_size or batch_size),
        generate_config={"temperature": temperature},
        grpo_config=config,
        policy_loss_fn=loss(**{name: config[name] for name in names if name in config}),
        lr_scheduler=SimpleNamespace(get_last_lr=lambda: [1.0], step=lambda: None),
        filter_range=config.get("filter_range"),
        filter_truncated_response=config.get("filter_truncated_response", False),
        global_step=0,
        accum_count=0,
        effective_sample_count=0,
        effective_prompt_count=0,
        **{f"accum_{it}": torch.zeros(1) for it in ("loss", "kl", "entropy", "advantages")},
        **{
            f"raw_train_batch_{it}": []
            for it in ("reward", "format_acc", "ans_acc", "response_len")
        },
    )
    if not zero_bubble:
        consumer.adv = config["algo"]
        if _logs(consumer):
            consumer.wandb_run = None
    return consumer


def sampled(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    generations: int = 4,
    new_tokens: int = 6,
    temperature: Union[float, Sequence[float]] = 1.0,
    width: Optional[int] = None,
    pad: int = _PAD,
    seed: int = 0,
) -> Dict[str, Tensor]:
    """Return what a producer with vLLM sends: answers of the model to some prompts.

    Each answer is sampled on its row alone and unpadded, and its log-probabilities are of the
    distribution that it was sampled from. Rewards are random. Tensors are (P, G, S), (P, G, A) or
    (P, G, 1), ``temperature`` (P,).

    Args:
        model: a language model of transformers.
        prompts: token ids.
        generations: answers to each prompt.
        new_tokens: A; an answer ends with token 2 or there.
        temperature: of all prompts, or of each.
        width: prompt columns; those of the longest prompt if not given.
        pad: the pad token.
        seed: of answers and rewards.
    """
    degrees = [temperature] * len(prompts) if isinstance(temperature, float) else list(temperature)
    width = width or max(map(len, prompts))
    rows = []
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for prompt, degree in zip(prompts, degrees):
            for _ in range(generations):
                answer, log_probs = _answer(model, prompt, new_tokens, degree)
                rows.append(_row(prompt, answer, log_probs, width, new_tokens, pad))
        reward = torch.randn(len(prompts), generations, 1)
    model.train(training)
    batch = {
        name: torch.stack([row[name] for row in rows]).view(len(prompts), generations, -1)
        for name in rows[0]
    }
    return {
        **batch,
        "reward": reward,
        "format_acc": (reward > 0).float(),
        "ans_acc": (reward > 0).float(),
        "temperature": torch.tensor(degrees),
    }


def learn(consumer: Any, minibatch: Dict[str, Tensor], step_idx: int = 0) -> Optional[float]:
    """Let a consumer take a step with the groups of a minibatch; what ``step`` returns."""
    groups = minibatch["reward"].size(0)
    lengths = minibatch["action_mask"].sum(dim=-1).float()
    raw: Dict[str, List[Tensor]] = {
        f"raw_train_mini_batch_{name}": [minibatch[name][i].flatten() for i in range(groups)]
        for name in ("reward", "format_acc", "ans_acc")
    }
    raw["raw_train_mini_batch_response_len"] = list(lengths)
    bar = SimpleNamespace(set_postfix=lambda _: None)
    first = () if "zero_bubble" in type(consumer).__module__ else (step_idx,)
    loss: Optional[float] = consumer.step(*first, bar, **minibatch, **raw)
    return loss


def _ranks(plugin: Any) -> Dict[str, int]:
    groups = {"dp_rank": plugin.dp_group, "tp_rank": getattr(plugin, "tp_group", None)}
    return {name: torch.distributed.get_rank(group) for name, group in groups.items()}


def _logs(consumer: Any) -> bool:
    """Whether upstream's set-up gives this rank a log."""
    if consumer.pp_size == 1:
        return bool(consumer.rank == 0)
    last: bool = consumer.plugin.stage_manager.is_last_stage()
    return last and consumer.tp_rank == consumer.dp_rank == 0


class WholeBooster(LocalBooster):
    """A booster of a process that has the whole model and all data."""

    plugin: Any = SimpleNamespace(
        dp_size=1,
        tp_size=1,
        pp_size=1,
        dp_group=None,
        zero_stage=0,
        shard_config=SimpleNamespace(enable_tensor_parallelism=False, parallel_output=False),
    )

    def no_sync(self, model: Any, optimizer: Any) -> Any:
        """Return a context that does nothing."""
        return nullcontext()


def _answer(
    model: Any, prompt: Sequence[int], most: int, degree: float
) -> Tuple[List[int], List[float]]:
    ids: List[int] = list(prompt)
    log_probs: List[float] = []
    while len(log_probs) < most and (not log_probs or ids[-1] != _EOS):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1] / degree
        distribution = logits.log_softmax(dim=-1)
        token = int(torch.multinomial(distribution.exp(), 1))
        ids.append(token)
        log_probs.append(float(distribution[token]))
    return ids[len(prompt) :], log_probs


def _row(
    prompt: Sequence[int],
    answer: List[int],
    log_probs: List[float],
    width: int,
    most: int,
    pad: int,
) -> Dict[str, Tensor]:
    before, after = width - len(prompt), most - len(answer)
    actions = [1] * len(answer) + [0] * after
    return {
        "input_ids": torch.tensor([pad] * before + list(prompt) + answer + [pad] * after),
        "attention_mask": torch.tensor([0] * before + [1] * len(prompt) + actions).int(),
        "action_mask": torch.tensor(actions).int(),
        "action_log_probs": torch.tensor(log_probs + [0.0] * after),
        "response_idx": torch.tensor([width, width + len(answer) - 1]),
    }
