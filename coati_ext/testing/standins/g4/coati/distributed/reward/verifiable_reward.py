from __future__ import annotations

import inspect
from typing import Any, List, Optional

import torch


class VerifiableReward:
    def __init__(self, reward_fns: List[Any], **kwargs: Any):
        self.reward_fns = reward_fns
        self.kwargs = kwargs

    def __call__(
        self,
        input_ids: torch.Tensor,
        gt_answer: Optional[List[str]] = None,
        test_cases: Optional[List[str]] = None,
        response_idx: Optional[List[torch.Tensor]] = None,
    ) -> torch.Tensor:
        """Reward, format and answer of each row, (B, 3), summed over the functions."""
        given = {"gt_answer": gt_answer, "test_cases": test_cases, "response_idx": response_idx}
        total = torch.zeros(input_ids.size(0), 3)
        for function in self.reward_fns:
            taken = [name for name in given if name in inspect.getfullargspec(function).args]
            rows = [
                function(ids, **{name: given[name][i] for name in taken}, **self.kwargs)
                for i, ids in enumerate(input_ids)
            ]
            total += torch.stack(rows)
        return total
