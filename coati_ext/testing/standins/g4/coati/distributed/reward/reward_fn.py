from __future__ import annotations

import contextlib
import json

import torch

from .code_reward.utils import check_correctness_code_api as check_correctness_code


def code_reward_fn(input_ids, test_cases, response_idx, **kwargs):
    """Reward, format and answer of a program, (3,); asked at a url that nobody passes (D46)."""
    url = kwargs.get("url", "http://localhost:8000/check_correctness")
    tokenizer = kwargs["tokenizer"]
    eval_mode = kwargs.get("eval_mode", False)
    first, last = response_idx.tolist()
    text = tokenizer.decode(input_ids[first : last + 1], skip_special_tokens=True)
    fenced = "```python" in text
    solution = text.split("```python")[-1].split("```")[0]
    passed = 0.0
    with contextlib.suppress(Exception):
        results, _ = check_correctness_code(
            in_outs=json.loads(test_cases), generation=solution, timeout=10, debug=False, url=url
        )
        passed = float(all(result == 1 for result in results))
    cut = not eval_mode and last - first + 1 >= kwargs["max_new_tokens"]
    reward = 10.0 * passed * (fenced or eval_mode) * (not cut)
    if eval_mode:
        return {"ans_valid": passed, "reward": reward}
    return torch.tensor([reward, float(fenced), passed])
