"""The hooks, one function each. An implementation takes any subset of the arguments, by name.

There are three kinds. *Registration* hooks pass patches, options or defects to ``register``. A
*choice* is a hook with exactly one active implementation, picked by name when the plan is made. Of
an *observer*, every implementation is called. Letters: B rows, S sequence columns, A action
columns, H hidden.

The choices from ``align_prompts`` to ``scale_advantages`` are the steps from prompts to the policy
loss, in the order in which they run; the last two are of ``coati.distributed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence, Tuple

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.report import Row
    from coati_ext.rollout import Frame, Judgement, Rollout

hookspec = HookspecMarker("coati_ext")
hookimpl = HookimplMarker("coati_ext")


@hookspec
def register_patches(register: Callable[[Any], None]) -> None:
    """Call ``register(patch)`` with each ``coati_ext.Patch`` that the plugin brings"""


@hookspec
def register_options(register: Callable[[str, type], None]) -> None:
    """Call ``register(section, options_class)`` for each configuration section of the plugin"""


@hookspec
def register_defects(register: Callable[[Any], None]) -> None:
    """Call ``register(defect)`` with each ``coati_ext.Defect`` that ``doctor --live`` measures"""


@hookspec(firstresult=True)
def last_hidden_states(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Optional[Tensor]:
    """Return the last hidden states of a backbone, (B, S, H); those of pads may be anything finite

    ``input_ids`` (B, S), ``attention_mask`` (B, S) is true for real tokens, between which no pad
    stands, ``position_ids`` (B, S) counts the real tokens of each row. ``backbone`` is called
    within the forward of whatever wraps the reward model, the critic or the actor.
    """


@hookspec(firstresult=True)
def pool_reward(
    hidden: Tensor, attention_mask: Tensor, positions: Tensor, model: Any
) -> Optional[Tensor]:
    """Return the hidden state that the value head scores, (B, H), from hidden (B, S, H)

    The rows are left-padded. ``attention_mask`` (B, S) is true for real tokens, ``positions`` (B,)
    is the column of each row's last real token, ``model`` is the reward model.
    """


@hookspec(firstresult=True)
def align_prompts(input_ids: Tensor, attention_mask: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
    """Return left-padded prompts without gaps and their mask, (B, P) each, from (B, S) each"""


@hookspec(firstresult=True)
def sample_answers(
    maker: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    new_tokens: int,
    generate_kwargs: Mapping[str, Any],
) -> Optional[Tensor]:
    """Return the prompts (B, P) followed by at most ``new_tokens`` columns of sampled answers

    ``generate_kwargs`` are those of ``make_experience``.
    """


@hookspec(firstresult=True)
def mark_actions(
    sequences: Tensor, prompt_width: int, stops: Sequence[Sequence[int]]
) -> Optional[Tuple[Tensor, Tensor]]:
    """Return which sampled tokens are actions, (B, A) bool, and which answers ended, (B,) bool

    ``sequences`` (B, S) has the prompts in its first ``prompt_width`` columns. ``stops`` are token
    sequences that end an answer; their tokens are actions too.
    """


@hookspec(firstresult=True)
def action_log_probs(model: Any, frame: Frame) -> Optional[Tensor]:
    """Return the log-probability of each action, (B, A), under an actor or reference model

    Called in the rollout and again, with gradients, in each training step.
    """


@hookspec(firstresult=True)
def state_values(model: Any, frame: Frame) -> Optional[Tensor]:
    """Return the critic's value of the state before each action, (B, A)

    Called in the rollout and again, with gradients, in each training step.
    """


@hookspec(firstresult=True)
def score_rows(model: Any, frame: Frame, extras: Mapping[str, Any]) -> Optional[Tensor]:
    """Return the reward model's score of each row, (B,)

    ``extras`` are further arguments of the reward models of this generation. In G4 they are
    ``response_start``, ``response_end`` and ``gt_answer``, each with one item per row.
    """


@hookspec(firstresult=True)
def scale_reward(reward: Tensor, model: Any, maker: Any) -> Optional[Tensor]:
    """Return rewards in the unit in which every stage is to see them, (B,)

    Called at the end of each forward of a reward model that is not being trained: ``model`` is that
    one, ``maker`` the experience maker whose rollout the rows are of, or ``None`` elsewhere. Then
    called once with all scores of a rollout on this rank, as ``score_rows`` gave them: ``model`` is
    ``None``. Clipping and penalties come after it.
    """


@hookspec(firstresult=True)
def shape_reward(
    score: Tensor, log_ratio: Tensor, action_mask: Tensor, kl_coef: float
) -> Optional[Tensor]:
    """Return the reward of each action, (B, A), zero where there is no action

    ``score`` (B,) is the reward model's, ``log_ratio`` (B, A) log policy minus log reference,
    ``action_mask`` (B, A) true for real actions.
    """


@hookspec(firstresult=True)
def estimate_advantages(
    values: Tensor, rewards: Tensor, action_mask: Tensor, gamma: float, lam: float
) -> Optional[Tensor]:
    """Return the advantage of each action, (B, A), zero where there is no action

    ``values`` (B, A) are of the states before the actions, ``rewards`` (B, A) from
    ``shape_reward``.
    """


@hookspec(firstresult=True)
def compare_group(score: Tensor, kl: Tensor, group_size: int, kl_coef: float) -> Optional[Tensor]:
    """Return GRPO's advantage of each answer, (B,), within its group

    A group is the ``group_size`` answers to one prompt, in adjacent rows. ``score`` (B,) is the
    reward model's, ``kl`` (B,) the mean KL estimate of each answer.
    """


@hookspec(firstresult=True)
def scale_advantages(advantages: Tensor, action_mask: Tensor) -> Optional[Tensor]:
    """Return the advantages for the policy loss, (B, A), in each training step

    The value loss uses the advantages of ``estimate_advantages`` unchanged.
    """


@hookspec(firstresult=True)
def group_advantages(
    reward: Tensor, action_mask: Tensor, group_size: int, algorithm: str
) -> Optional[Tensor]:
    """Return the advantage of each action in coati.distributed, (B, A), zero where there is none

    ``reward`` (B,) is of each answer; the ``group_size`` answers to one prompt are in adjacent
    rows. ``action_mask`` (B, A) is true for real actions of answers that are trained on.
    ``algorithm`` is the user's ``algo``.
    """


@hookspec(firstresult=True)
def action_losses(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Optional[Tensor],
    advantages: Tensor,
    action_mask: Tensor,
    clip: Tuple[float, float],
    beta: float,
    algorithm: str,
) -> Optional[Tensor]:
    """Return the loss of each action in coati.distributed, (B, A), which is averaged afterwards

    ``log_probs``, ``old_log_probs`` and ``reference_log_probs`` (B, A) are of the policy being
    trained, of the one that sampled, and of the reference (``None`` if ``beta`` is 0),
    ``advantages`` (B, A) from ``group_advantages``. The ratio is clipped to 1 - ``clip[0]`` and
    1 + ``clip[1]``; ``beta`` weighs the distance from the reference.
    """


@hookspec
def experience_made(
    experience: Any, maker: Any, rollout: Rollout, judgement: Optional[Judgement]
) -> None:
    """Called with each new Experience and what it was made of; read it, do not change it

    ``judgement`` is ``None`` for GRPO, which has no critic.
    """


@hookspec
def policy_step(trainer: Any, experience: Any, log_probs: Tensor) -> None:
    """Called after each training step of PPO or GRPO

    ``log_probs`` (B, A) are those that the step has learnt from, before its update.
    """


@hookspec
def reward_step(trainer: Any, chosen_reward: Tensor, reject_reward: Tensor) -> None:
    """Called with the rewards of B pairs, (B,) each, that a reward model is about to learn from"""


@hookspec
def reward_evaluated(trainer: Any, chosen_reward: Tensor, reject_reward: Tensor) -> None:
    """Called after an evaluation of a reward model with the rewards of its N pairs, (N,) each"""


@hookspec
def rows_scored(
    model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, reward: Tensor
) -> None:
    """Called after each forward of a reward model, with the arguments that were pooled

    The rows are as ``pool_reward`` gets them, ``reward`` is (B,).
    """


@hookspec
def tokens_computed(backbone: Any, computed: int, real: int, columns: int) -> None:
    """Called after each forward of a backbone: how many tokens it computed for how many

    ``real`` of the ``columns`` (B x S) are no pads.
    """


@hookspec
def report_made(note: Callable[[str], None]) -> None:
    """Call ``note(text)`` with what a report of the patches should tell of this process"""


@hookspec
def patch_applied(row: Row) -> None:
    """Called after a patch has changed an upstream function, with its row of the report"""
