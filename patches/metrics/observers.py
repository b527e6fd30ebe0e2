"""The observers: what is added up of experience, of training steps and of evaluations.

Everything stays on the device. Letters: B rows, A action columns, S sequence columns, N pairs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Tuple
from weakref import WeakKeyDictionary

from coati_ext import hookimpl, tensors

from .log import Sums, add, log_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from coati_ext.rollout import Judgement, Rollout

_ALONE = 4  # rows of an evaluation that are scored once more, each alone


@dataclass(frozen=True)
class _Scored:
    """What is kept of one forward of a reward model."""

    model: int
    """The ``id`` of the model."""
    token: Tensor
    """(B,) the pooled token of each row."""
    real: Tensor
    """(B,) bool, whether it is no pad."""
    length: Tensor
    """(B,) real tokens."""
    reward: Tensor
    """(B,)."""
    first: Optional[Tuple[Tensor, Tensor]]
    """Ids and mask of the first rows, (at most ``_ALONE``, S) each, of the first forward."""


_experience: WeakKeyDictionary[Any, Sums] = WeakKeyDictionary()  # of a maker, until it is learnt
_scored: Deque[_Scored] = deque(maxlen=4096)  # a reward model that nobody asks about is forgotten
_tokens = [0, 0, 0]  # computed, real and columns


@hookimpl
def tokens_computed(computed: int, real: int, columns: int) -> None:
    """Count what the models have computed since the last write."""
    for place, number in enumerate((computed, real, columns)):
        _tokens[place] += number


@hookimpl
def rows_scored(
    model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, reward: Any
) -> None:
    """Keep what was pooled of rows (B, S) until it is known what they are."""
    at = positions.unsqueeze(1)
    first = None if _scored else (input_ids[:_ALONE], attention_mask[:_ALONE])
    _scored.append(
        _Scored(
            model=id(model),
            token=input_ids.gather(1, at).squeeze(1),
            real=attention_mask.gather(1, at).squeeze(1),
            length=attention_mask.sum(dim=1),
            reward=reward.clone(),  # upstream averages it over ranks in place
            first=first,
        )
    )


@hookimpl
def experience_made(
    experience: Any, maker: Any, rollout: Rollout, judgement: Optional[Judgement]
) -> None:
    """Add up what was sampled and how it was judged; the next training step writes it."""
    mask = rollout.frame.action_mask
    sums = {
        "scores": tensors.joint_sums(rollout.score, mask.sum(dim=1)),
        "answers": tensors.joint_sums(rollout.log_ratio.sum(dim=1), ~rollout.ended),
        "entropy": _sums_of(-rollout.log_probs, mask),
        "returns": _sums_of(experience.reward if judgement is None else _returns(judgement)),
    }
    if judgement is not None:
        target, values = judgement.advantages + judgement.values, judgement.values
        if experience.values.dim() == 1:  # a whole answer is one action
            target, values, mask = target[:, :1], values[:, :1], mask[:, :1]
        sums["values"] = tensors.joint_sums(values, target, mask)
    scored = _by(maker.reward_model, _last(len(rollout.score)))
    sums.update(_pooled(scored, maker, rollout.score.device, rollout.ended))
    add(_experience.setdefault(maker, {}), _of("rollout", sums))


@hookimpl
def policy_step(trainer: Any, experience: Any, log_probs: Tensor) -> None:
    """Write how far the policy (B, A) is from the one that sampled, and what was sampled."""
    maker = getattr(trainer, "experience_maker", None)
    sampled = _experience.pop(maker, {}) if maker is not None else {}
    log = log_of(trainer, log_probs.device)
    if not log.wanted:
        return
    ratio, mask = tensors.policy_ratio(
        log_probs, experience.action_log_probs, experience.action_mask
    )
    # A loss of the user's may not say to what it clips: nan is not written.
    limit = getattr(trainer.actor_loss_fn, "clip_eps", None)
    clipped = ratio * float("nan") if limit is None else (ratio - 1).abs() > limit
    steps = {
        "ratios": tensors.joint_sums(ratio, clipped, mask),
        "change": _sums_of(ratio - 1 - ratio.log(), mask),
    }
    log.step({**_on(log_probs.device, sampled), **_of("policy", steps), **_used(log_probs.device)})


@hookimpl
def reward_step(trainer: Any, chosen_reward: Tensor, reject_reward: Tensor) -> None:
    """Write the margins (B,) and rewards of a training step of a reward model."""
    scored, log = _last(2 * len(chosen_reward)), log_of(trainer, chosen_reward.device)
    if log.wanted:
        sums = _pairs(trainer, chosen_reward - reject_reward, scored)
        log.step({**_of("reward_model", sums), **_used(chosen_reward.device)})


@hookimpl
def reward_evaluated(trainer: Any, chosen_reward: Tensor, reject_reward: Tensor) -> None:
    """Write margins (N,) of an evaluation, how sure they are, and what batches do to rewards."""
    from coati_ext.rollout import ranks

    scored, log = _last(2 * len(chosen_reward)), log_of(trainer, chosen_reward.device)
    if not log.wanted:
        return
    margin = chosen_reward - reject_reward
    sums = {
        **_pairs(trainer, margin, scored),
        "calibration": tensors.calibration_sums(margin),
    }
    first = scored[0].first if scored else None
    # Wrappers gather parameters in each forward, so all ranks make these or none does.
    if ranks.smallest(int(first is not None), margin.device) and first is not None:
        alone = _alone(trainer.model, *first)
        sums["shift"] = _sums_of(scored[0].reward[: len(alone)] - alone)
        _scored.clear()
    log.write(_of("reward_model_eval", sums))
    _tokens[:] = 0, 0, 0  # of a training step they would be too many


def _returns(judgement: Judgement) -> Tensor:
    summed: Tensor = judgement.rewards.sum(dim=1)
    return summed


def _pairs(trainer: Any, margin: Tensor, scored: List[_Scored]) -> Dict[str, Tensor]:
    """The sums of margins (N,) and of the rows that they are of."""
    import torch

    none = margin.new_zeros(0)
    rewards = torch.cat([none, *(item.reward for item in scored)])
    lengths = torch.cat([none, *(item.length for item in scored)])
    return {
        "margins": tensors.joint_sums(margin, margin > 0),
        "scores": tensors.joint_sums(rewards, lengths),
        **_pooled(scored, trainer, margin.device),
    }


def _pooled(
    scored: List[_Scored], holder: Any, device: torch.device, ended: Optional[Tensor] = None
) -> Dict[str, Tensor]:
    """How many rows were pooled at an end token, at content, at a pad and at a stop: (3,) or (4,).

    Nothing where no tokenizer says which token ends a row, and zeros without rows: on all ranks
    there have to be the same sums.

    Args:
        scored: the rows.
        holder: what may have a tokenizer.
        device: of the result.
        ended: (B,) bool, whether a row ends with a stop sequence or an end token; if that is not
            known, stop sequences are content.
    """
    import torch

    tokenizer = getattr(holder, "tokenizer", None)
    eos, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "pad"))
    if eos is None:
        return {}
    if not scored:
        return {"pooled": torch.zeros(3 + (ended is not None), dtype=torch.float64, device=device)}
    token = torch.cat([item.token for item in scored])
    padded = ~torch.cat([item.real for item in scored])
    if pad is not None and pad != eos:
        padded = padded | (token == pad)
    end = (token == eos) & ~padded
    stop = [] if ended is None else [ended & ~end & ~padded]
    content = ~torch.stack([end, padded, *stop]).any(dim=0)
    return {"pooled": torch.stack([end, content, padded, *stop]).sum(dim=1).double()}


def _alone(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The reward of each row (B, S) in a batch of its own: (B,)."""
    import torch

    training = model.training
    model.eval()
    rows = [slice(row, row + 1) for row in range(len(input_ids))]
    with torch.no_grad():
        found = torch.cat(
            [model(input_ids[row], attention_mask=attention_mask[row]) for row in rows]
        )
    model.train(training)
    return found


def _last(rows: int) -> List[_Scored]:
    """The forwards of the last rows that were scored; nothing if others are among them.

    What was scored before, as by a user's own evaluation on one rank, is forgotten.
    """
    taken: List[_Scored] = []
    count = 0
    while _scored and count < rows:
        taken.insert(0, _scored.pop())
        count += len(taken[0].token)
    _scored.clear()
    return taken if count == rows else []


def _by(judge: Any, scored: List[_Scored]) -> List[_Scored]:
    """The forwards, if the judge of a rollout made them: one of rules makes none."""
    if not hasattr(judge, "modules"):
        return scored
    models = {id(module) for module in judge.modules()}
    return scored if models.issuperset(item.model for item in scored) else []


def _used(device: torch.device) -> Sums:
    """What was computed since the last write, (3,) float64."""
    import torch

    used = torch.tensor(_tokens, dtype=torch.float64, device=device)
    _tokens[:] = 0, 0, 0
    return {"tokens/used": used}


def _sums_of(numbers: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    return tensors.joint_sums(numbers, numbers, mask)


def _of(stage: str, sums: Dict[str, Tensor]) -> Sums:
    return {f"{stage}/{kind}": item for kind, item in sums.items()}


def _on(device: torch.device, sums: Sums) -> Sums:
    return {name: item.to(device) for name, item in sums.items()}
