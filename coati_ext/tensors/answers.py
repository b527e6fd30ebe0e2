"""Action masks, log-probabilities and KL estimates of sampled answers.

Letters: B rows, S sequence columns, A action columns, V vocabulary. Prompts are left-padded, so
action column j is sequence column S - A + j.
"""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor


def answer_mask(
    sequences: Tensor, prompt_width: int, stops: Sequence[Sequence[int]]
) -> Tuple[Tensor, Tensor]:
    """Which sampled tokens are actions: all up to and including the first stop sequence.

    A stop sequence may begin in the prompt, because the sampler compares the tail of the whole
    row. ``pad_token_id`` is not used, so the pad may also be a stop token or a sampled token.

    Args:
        sequences: (B, S) integer, the prompts in the first ``prompt_width`` columns.
        prompt_width: S - A.
        stops: stop sequences of one or more token ids.

    Returns:
        The action mask (B, A) bool, and (B,) bool: true if the answer reached a stop sequence,
        false if it was cut off.
    """
    ends = torch.zeros_like(sequences, dtype=torch.bool)
    for stop in stops:
        found = torch.ones_like(ends)
        for back, token in enumerate(reversed(stop)):
            here = sequences == token
            found &= torch.nn.functional.pad(here, (back, 0))[:, : here.size(1)]
        ends |= found
    ends = ends[:, prompt_width:]
    earlier = ends.long().cumsum(dim=1) - ends.long()
    return earlier == 0, ends.any(dim=1)


def selected_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of each token: (B, A) from logits (B, A, V) and ids (B, A).

    Computed as the logit minus the logsumexp, so that float32 logits need no second (B, A, V)
    tensor. Half-precision logits are cast to float32 first, because logsumexp is too inexact there.
    """
    wide = logits if logits.element_size() >= 4 else logits.float()
    return wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(dim=-1)


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(policy || reference) for each action sampled by the policy: (B, A).

    See Schulman, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). ``k1`` is the
    log-ratio: unbiased, either sign. ``k3`` is ``exp(-x) - 1 + x``: unbiased, never negative, of
    lower variance. One token can raise k3 to e^29, so the log-ratio is clamped to +-20 and k3 to 10
    nats per token, as in verl (``verl/trainer/ppo/core_algos.py``, ``low_var_kl``).

    Args:
        log_ratio: (B, A) log policy minus log reference, floating point.
        estimator: ``k1`` or ``k3``.
    """
    if estimator == "k1":
        return log_ratio
    bounded = log_ratio.clamp(-20, 20)
    return (torch.expm1(-bounded) + bounded).clamp(max=10)
