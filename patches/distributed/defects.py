"""Defects of ``coati.distributed`` that ``doctor --live`` measures with the installed coati.

Where the package is not, or cannot be imported, there is nothing wrong with it.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from coati_ext import Defect


def _defect(name: str, summary: str, measure: str, **expected: float) -> Defect:
    return Defect(name, "distributed", summary, ("G4",), f"{__name__}:{measure}", **expected)


DEFECTS = (
    _defect(
        "another temperature trained",
        "distance of GRPO's gradient from its own, user's temperature 1, sampled at 0.6",
        "measure_temperature",
    ),
    _defect(
        "gradient of microbatches",
        "GRPO's gradient of 4 microbatches, over that of one",
        "measure_split",
        right=1.0,
    ),
    _defect(
        "REINFORCE_PPB, microbatches",
        "distance of its gradient in microbatches of a row from that of one",
        "measure_reinforce",
    ),
    _defect(
        "padded prompts, GPT-2",
        "distance of GRPO's gradient from that of unpadded prompts",
        "measure_padding",
    ),
    _defect(
        "KL of a masked pad",
        "gradients that are not finite, a pad 200 nats below its reference",
        "measure_masked_kl",
    ),
    _defect(
        "BOS hidden from vLLM",
        "tokens of a prompt that vLLM is not given, bos == pad",
        "measure_hidden_bos",
    ),
)
_PPB: Dict[str, Any] = {"algo": "REINFORCE_PPB"}
_PROMPTS = [[1, 5, 9], [1, 7, 8], [1, 33, 4], [1, 20, 21]]


def measure_temperature() -> float:
    """The distance of the gradient at a temperature that the user did not set."""
    return _apart(lambda: [_gradient("llama", sampled_at=0.6, user=it) for it in (1.0, 0.6)])


def measure_split() -> float:
    """The gradient of four microbatches, in units of that of one."""
    from coati_ext.testing import has_distributed

    if not has_distributed():
        return 1.0
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

    from coati_ext.testing import has_distributed

    if not has_distributed():
        return 0.0
    policy, reference = _table(torch), _table(torch)
    with torch.no_grad():
        policy.rows.weight[:, 0] = -200
    found = _gradient_of(policy, reference, [[5]], beta=0.1)
    return float((~found.isfinite()).sum())


def measure_hidden_bos() -> float:
    """The number of real tokens that are left out of a prompt."""
    from types import SimpleNamespace

    import torch

    from coati_ext.testing import cpu_only, has_distributed

    if not has_distributed():
        return 0.0
    from coati.distributed.inference_backend import VLLMInferenceBackend

    seen: List[Any] = []

    def generate(prompt_token_ids: Any, **_: Any) -> Any:
        seen.extend(prompt_token_ids)
        answer = SimpleNamespace(token_ids=[2], logprobs=[{2: SimpleNamespace(logprob=0.0)}])
        return [SimpleNamespace(outputs=[answer])]

    backend = VLLMInferenceBackend.__new__(VLLMInferenceBackend)
    backend.llm = SimpleNamespace(generate=generate)
    backend.tokenizer = SimpleNamespace(pad_token_id=1)
    backend.sample_params = SimpleNamespace(max_tokens=1)
    ids = torch.tensor([[1, 1, 1, 5, 6]])
    with cpu_only():
        backend.generate(ids, torch.tensor([[0, 0, 1, 1, 1]]))
    return float(3 - len(seen[0]))


def _apart(gradients: Any) -> float:
    """The relative distance of the first of two gradients from the second."""
    from coati_ext.testing import has_distributed

    if not has_distributed():
        return 0.0
    found, right = gradients()
    return float((found - right).norm() / right.norm())


def _gradient(
    family: str, sampled_at: float = 1.0, user: float = 1.0, width: int = 3, **config: Any
) -> Any:
    """The gradient that a tiny model is trained with on some prompts, (N,)."""
    import torch
    import transformers

    from coati_ext.testing import tiny_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(family))
    given = {"temperature": sampled_at, "width": width}
    return _gradient_of(model, None, _PROMPTS, given, temperature=user, **config)


def _gradient_of(model: Any, reference: Any, prompts: Any, data: Any = (), **config: Any) -> Any:
    import torch

    from coati_ext.testing import cpu_only, grpo_consumer, learn, sampled

    with cpu_only():
        before = [item.detach().clone() for item in model.parameters()]
        minibatch = sampled(model, prompts, **dict(data))
        learn(grpo_consumer(model, reference, batch_size=len(prompts), **config), minibatch)
    pairs: List[Tuple[Any, Any]] = list(zip(before, model.parameters()))
    return torch.cat([(old - new.detach()).flatten() for old, new in pairs])


def _table(torch: Any) -> Any:
    """A language model that knows the last token only."""
    from types import SimpleNamespace

    class Table(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(8, 8)
            torch.nn.init.zeros_(self.rows.weight)

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            return SimpleNamespace(logits=self.rows(input_ids))

    return Table()
