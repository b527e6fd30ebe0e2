"""Where sampled answers end, and what their tokens cost.

Letters: B rows, S sequence columns, A action columns, V vocabulary. The prompts of a frame are
left-padded, so action column j is sequence column S - A + j.
"""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor


def answer_mask(
    sequences: Tensor, prompt_width: int, stops: Sequence[Sequence[int]]
) -> Tuple[Tensor, Tensor]:
    """Which sampled tokens are actions: those up to the first end of a stop sequence, included.

    A stop sequence may begin in the prompt, as it may for the sampler, which compares the tail of
    the whole row. What ``pad_token_id`` is plays no part, so it may be a stop or a sampled token.

    Args:
        sequences: (B, S) integer, the prompts in the first ``prompt_width`` columns.
        prompt_width: S - A.
        stops: token ids that end an answer, each a sequence of one or more.

    Returns:
        The action mask (B, A) bool, and whether each answer ended (B,) bool, rather than being cut
        off.
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
    """The log-probability of one token at each place: (B, A) from logits (B, A, V) and ids (B, A).

    The logit less the logsumexp, which never makes a second (B, A, V) tensor of wide logits; half
    precision is widened to float32 first, since logsumexp loses most of its digits there.
    """
    wide = logits if logits.element_size() >= 4 else logits.float()
    return wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(dim=-1)


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(policy || reference) from each action sampled by the policy: (B, A).

    ``k1`` is the log-ratio itself, unbiased and of either sign; ``k3`` is ``exp(-x) - 1 + x``,
    unbiased, never negative and of lower variance (joschu.net/blog/kl-approx.html). One token can
    carry k3 to e^29, so its exponent is held to 20 and its value to 10 nats, as verl does
    (``verl/trainer/ppo/core_algos.py``, ``low_var_kl``).

    Args:
        log_ratio: (B, A) log policy less log reference, floating point.
        estimator: ``k1`` or ``k3``.
    """
    if estimator == "k1":
        return log_ratio
    bounded = log_ratio.clamp(-20, 20)
    return (torch.expm1(-bounded) + bounded).clamp(max=10)
