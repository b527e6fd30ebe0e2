"""The built-in hooks of the pipeline, in the order in which they run.

The sampler is in :mod:`coati_ext.patches.rollout.sampler`. Letters: B rows, A action columns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from coati_ext import hookimpl, options, tensors
from coati_ext.rollout.models import accepts, frame_inputs

from .model_utils import log_probs_of_actions

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.rollout import Frame


@hookimpl(specname="align_prompts")
def compacted(input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Left-pad each row without gaps, and drop the columns that are padding in every row."""
    return tensors.trimmed(*tensors.left_frame(input_ids, attention_mask))


@hookimpl(specname="mark_actions")
def up_to_the_end(sequences: Tensor, prompt_width: int, stops: Sequence[Sequence[int]]) -> Any:
    """Mark the sampled tokens up to and including the first stop sequence as actions."""
    return tensors.answer_mask(sequences, prompt_width, stops)


@hookimpl(specname="action_log_probs")
def from_logits(model: Any, frame: Frame) -> Tensor:
    """Log-probabilities (B, A) from one forward over prompt and answer, zero where no action is.

    Of an actor whose head is all that follows its backbone, no logits but those of actions.
    """
    from coati_ext.rollout import inside

    # Before v0.3.1 the actor returns log-probabilities, and takes the number of them.
    asked = [frame.num_actions] if accepts(model, "num_actions") else []
    actor = inside.language_model(model)
    if actor is not None:
        compute = partial(inside.action_log_probs, actor, frame)
        found: Tensor = inside.through(model, actor, compute, frame.sequences, *asked)
        return found
    inputs = frame_inputs(model, frame.attention_mask, frame.position_ids)
    output = model(frame.sequences, *asked, **inputs)
    return log_probs_of_actions(output, frame.sequences, frame.num_actions)


@hookimpl(specname="state_values")
def from_critic(model: Any, frame: Frame) -> Tensor:
    """Values (B, A) from one forward over prompt and answer, by the patched critic."""
    values: Tensor = model(frame.sequences, attention_mask=frame.attention_mask)
    return values[:, -frame.num_actions :]


@hookimpl(specname="score_rows")
def from_reward_model(model: Any, frame: Frame, extras: Mapping[str, Any]) -> Tensor:
    """Scores (B,) of the rows in the frame, with the padding of reward-model training."""
    score: Tensor = model(frame.sequences, attention_mask=frame.attention_mask, **extras)
    return score


@hookimpl(specname="shape_reward")
def terminal(score: Tensor, log_ratio: Tensor, action_mask: Tensor, kl_coef: float) -> Tensor:
    """The score on the last action, minus a KL penalty on every action: (B, A)."""
    return tensors.terminal_reward(score, _penalty(log_ratio, action_mask, kl_coef), action_mask)


@hookimpl(specname="shape_reward")
def every_token(score: Tensor, log_ratio: Tensor, action_mask: Tensor, kl_coef: float) -> Tensor:
    """The score minus a KL penalty, both on every action: (B, A)."""
    return tensors.every_token_reward(score, _penalty(log_ratio, action_mask, kl_coef), action_mask)


def _penalty(log_ratio: Tensor, action_mask: Tensor, kl_coef: float) -> Tensor:
    settings = options("rollout")
    if settings.advantage != "sequence":
        return kl_coef * tensors.kl_estimate(log_ratio, settings.kl or "k1")
    # Upstream's G1 and G2 penalise the mean KL of the answer; each action gets its part of it.
    actions = action_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return kl_coef * tensors.kl_estimate(log_ratio, settings.kl or "k3") / actions


@hookimpl(specname="estimate_advantages")
def gae(values: Tensor, rewards: Tensor, action_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation: (B, A)."""
    return tensors.gae(values, rewards, action_mask, gamma, lam)


@hookimpl(specname="estimate_advantages")
def sequence(values: Tensor, rewards: Tensor, action_mask: Tensor) -> Tensor:
    """The answer's summed reward minus the value of the prompt, for each action: (B, A)."""
    return tensors.sequence_advantage(values, rewards, action_mask)


@hookimpl(specname="compare_group")
def standardised(score: Tensor, kl: Tensor, group_size: int, kl_coef: float) -> Tensor:
    """Scores standardised within their group, KL penalties only centred: (B,)."""
    return tensors.group_advantage(score, kl, group_size, kl_coef)


@hookimpl(specname="scale_advantages")
def unscaled(advantages: Tensor) -> Tensor:
    """The advantages as they were estimated."""
    return advantages


@hookimpl(specname="scale_advantages")
def whitened(advantages: Tensor, action_mask: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the real actions of all ranks."""
    from coati_ext.rollout.ranks import total

    return tensors.whitened(
        advantages, action_mask, total(tensors.moments(advantages, action_mask))
    )
