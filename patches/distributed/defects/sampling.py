"""Measure what the sampler is given, and who is asked for its rewards."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, List
from unittest import mock

from .needed import need_distributed

_ADDRESS = "http://verifier.example/check"


def measure_hidden_bos() -> float:
    """The number of real tokens that are left out of a prompt."""
    import torch

    from coati_ext.testing import cpu_only

    need_distributed()
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


def measure_verifier() -> float:
    """The number of requests, in training and in an evaluation, to another address."""
    import torch

    from coati_ext.testing import cpu_only, importable_rewards

    need_distributed()
    asked: List[str] = []

    def post(url: str, **_: Any) -> Any:
        asked.append(url)
        found = {"result": [1], "metadata": [{}]}
        return SimpleNamespace(status_code=200, json=lambda: found)

    ids, where = torch.full((1, 4), 5), torch.tensor([[0, 2]])
    cases = json.dumps({"inputs": ["1"], "outputs": ["1"]})
    with importable_rewards(), cpu_only(), TemporaryDirectory() as folder:
        from coati.distributed.reward.code_reward import utils

        producer = _producer(Path(folder))
        with mock.patch.object(utils, "requests", SimpleNamespace(post=post)):
            producer.reward_model(ids, test_cases=[cases], response_idx=where)
            given = {"tokenizer": producer.tokenizer, "eval_mode": True}
            producer.evaluation_function(ids[0], cases, where[0], **given)
    return float(2 - asked.count(_ADDRESS))


def _producer(folder: Path) -> Any:
    """A producer of programs as its constructor leaves it; the second, since the first logs."""
    from coati.distributed.producer import BaseProducer

    from coati_ext.testing import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder / "model")
    data = folder / "prompts.jsonl"
    data.write_text("{}\n{}\n", encoding="utf-8")
    config = {"reward_fn_type": "code", "max_new_tokens": 9, "code_verifier_api_url": _ADDRESS}
    producer = BaseProducer.__new__(BaseProducer)
    producer.__init__(
        producer_idx=1,
        num_producers=2,
        num_consumer_procs=1,
        num_episodes=1,
        batch_size=1,
        train_dataset_config={"path": str(data), "max_length": 8, "system_prompt": None},
        model_config={"path": str(folder / "model")},
        generate_config={},
        backend="vllm",
        consumer_plugin_config={},
        grpo_config=config,
    )
    return producer
