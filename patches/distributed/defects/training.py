"""Measure the gradient of a process that has the whole model and all data."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from .needed import need_distributed

_PPB: Dict[str, Any] = {"algo": "REINFORCE_PPB"}
_PROMPTS = [[1, 5, 9], [1, 7, 8], [1, 33, 4], [1, 20, 21]]


def measure_temperature() -> float:
    """The distance of the gradient at a temperature that the user did not set."""
    return _apart(lambda: [_gradient("llama", sampled_at=0.6, user=it) for it in (1.0, 0.6)])


def measure_split() -> float:
    """The gradient of four microbatches, in units of that of one."""
    need_distributed()
    parts, whole = _gradient("llama", train_microbatch_size=4), _gradient("llama")
    return float((parts @ whole) / (whole @ whole))


def measure_reinforce() -> float:
    """The distance of the gradient of REINFORCE_PPB in microbatches of a row."""
    sizes = (1, 16)
    return _apart(lambda: [_gradient("llama", **_PPB, train_microbatch_size=it) for it in sizes])


def measure_padding() -> float:
    """The distance of the gradient of padded prompts."""
    return _apart(lambda: [_gradient("gpt2", width=8), _gradient("gpt2", width=3)])


def measure_masked_kl() -> float:
    """The number of gradients that are not finite."""
    import torch

    from coati_ext.testing import sampled

    need_distributed()
    policy, reference = table(8), table(8)
    with torch.no_grad():
        policy.rows.weight[:, 0] = -200
    found = gradient(policy, sampled(policy, [[5]]), reference, beta=0.1)
    return float((~found.isfinite()).sum())


def apart(found: Any, right: Any) -> float:
    """The relative distance of a gradient from another."""
    return float((found - right).norm() / right.norm())


def gradient(model: Any, minibatch: Any, reference: Any = None, **consumer: Any) -> Any:
    """The gradient that a model is trained with on a minibatch, (N,).

    Args:
        model: the policy.
        minibatch: of ``coati_ext.testing.sampled``.
        reference: the reference model.
        consumer: of ``coati_ext.testing.grpo_consumer``.
    """
    import torch

    from coati_ext.testing import cpu_only, grpo_consumer, learn

    with cpu_only():
        before = [item.detach().clone() for item in model.parameters()]
        size = minibatch["reward"].size(0)
        learn(grpo_consumer(model, reference, batch_size=size, **consumer), minibatch)
    pairs: List[Tuple[Any, Any]] = list(zip(before, model.parameters()))
    return torch.cat([(old - new.detach()).flatten() for old, new in pairs])


def table(columns: int, below: int = 0) -> Any:
    """A language model that knows the last token only, a row of logits for each.

    Args:
        columns: ids that it can sample.
        below: ids below these, which it cannot.
    """
    from types import SimpleNamespace

    import torch

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(below + columns, columns)
            torch.nn.init.zeros_(self.rows.weight)

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            logits = self.rows(input_ids)
            # Far below, and not infinite, for an entropy multiplies by it.
            return SimpleNamespace(logits=torch.nn.functional.pad(logits, (below, 0), value=-1e4))

    return Table()


def _apart(gradients: Any) -> float:
    need_distributed()
    return apart(*gradients())


def _gradient(
    family: str, sampled_at: float = 1.0, user: float = 1.0, width: int = 3, **config: Any
) -> Any:
    """The gradient that a tiny model is trained with on some prompts, (N,)."""
    import torch
    import transformers

    from coati_ext.testing import sampled, tiny_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(family))
    minibatch = sampled(model, _PROMPTS, temperature=sampled_at, width=width)
    return gradient(model, minibatch, temperature=user, **config)
