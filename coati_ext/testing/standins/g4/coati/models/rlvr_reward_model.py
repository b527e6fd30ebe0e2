from __future__ import annotations

from typing import Any, Callable, List, Optional

import torch


class RLVRRewardModel:
    """Sums reward functions over each row; callable like a model, but not an `nn.Module`."""

    def __init__(self, reward_fn_list: List[Callable], **kwargs: Any) -> None:
        self.reward_fn_list = reward_fn_list
        self.kwargs = kwargs

    def __call__(
        self,
        input_ids: torch.LongTensor,
        attention_mask: Optional[torch.Tensor] = None,
        response_start: Optional[List] = None,
        response_end: Optional[List] = None,
        gt_answer: Optional[List] = None,
    ) -> torch.Tensor:
        rewards = torch.zeros(len(input_ids), device=input_ids.device)
        for i in range(len(input_ids)):
            for reward_fn in self.reward_fn_list:
                rewards[i] += reward_fn(
                    input_ids[i],
                    attention_mask[i],
                    response_start=response_start[i],
                    response_end=response_end[i],
                    gt_answer=gt_answer[i],
                    **self.kwargs,
                )
        return rewards

    def to(self, device: Any) -> RLVRRewardModel:
        return self

    def eval(self) -> RLVRRewardModel:
        return self
