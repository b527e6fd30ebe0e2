from __future__ import annotations

from typing import Any, Dict, Optional

import torch

from coati.trainer.utils import get_current_device

try:
    from vllm import LLM, SamplingParams
except ImportError:
    LLM = None


class BaseInferenceBackend:
    def __init__(self, model_config: Dict[str, Any], generate_config: Dict[str, Any], tokenizer):
        pass


class VLLMInferenceBackend(BaseInferenceBackend):
    def __init__(
        self,
        model_config: Dict[str, Any],
        generate_config: Dict[str, Any],
        tokenizer: Any,
        num_generations: int = 8,
        tokenizer_config: Optional[Dict[str, Any]] = None,
    ):
        if LLM is None:
            raise ImportError("vllm is not installed")
        model_config = {"trust_remote_code": True, "enable_sleep_mode": False, **model_config}
        self.llm = LLM(model=model_config.pop("path"), tokenizer=None, **model_config)
        self.generate_config = {**generate_config, "logprobs": 0, "n": num_generations}
        self.sample_params = SamplingParams(**self.generate_config)
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.num_generations = num_generations

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs
    ) -> Dict[str, torch.Tensor]:
        """Answers to left-padded prompts (B, P): tensors of (B, G, columns) each."""
        pad, count, width = self.tokenizer.pad_token_id, *input_ids.shape
        params = kwargs.get("sample_params", self.sample_params)
        starts = (input_ids != pad).int().argmax(dim=1).tolist()  # a BOS may be a pad (D50)
        prompts = [row[start:] for row, start in zip(input_ids.tolist(), starts)]
        outputs = self.llm.generate(
            prompt_token_ids=prompts, sampling_params=params, use_tqdm=False
        )
        answers = [answer for output in outputs for answer in output.outputs]
        most = self.sample_params.max_tokens
        ids, log_probs, mask, index = [], [], [], []
        for answer in answers:
            real = len(answer.token_ids)
            ids.append([*answer.token_ids, *[pad] * (most - real)])
            chosen = [at[token].logprob for at, token in zip(answer.logprobs, answer.token_ids)]
            log_probs.append(chosen + [0.0] * (most - real))
            mask.append([1] * real + [0] * (most - real))
            index.append([width, width + real - 1])
        mask = torch.tensor(mask, dtype=attention_mask.dtype)
        times = len(answers) // count
        prompts, attended = (
            item.repeat_interleave(times, dim=0) for item in (input_ids, attention_mask)
        )
        data = {
            "input_ids": torch.cat([prompts, torch.tensor(ids)], dim=1),
            "attention_mask": torch.cat([attended, mask], dim=1),
            "action_log_probs": torch.tensor(log_probs),
            "action_mask": mask,
            "response_idx": torch.tensor(index),
        }
        device = get_current_device()
        made = {name: item.view(count, times, -1).to(device) for name, item in data.items()}
        return {**made, **{k: kwargs[k] for k in ("gt_answer", "test_cases") if k in kwargs}}
