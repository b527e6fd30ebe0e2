"""Training steps that compute log-probabilities and values as the rollout did.

Upstream's step runs unchanged, but actor and critic are replaced by proxies. Called with the
sequences of the experience, a proxy computes its result through the hooks of the rollout, with the
same masks and position ids. Letters: B rows, A action columns.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List

from coati_ext import announce, choice, tensors
from coati_ext.rollout.models import accepts, attributes
from coati_ext.rollout.values import state_values

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.rollout import Frame


class _Seen:
    """A proxy of a model: for the frame's sequences it returns ``answer(model, frame)``."""

    def __init__(self, model: Any, frame: Frame, answer: Callable[[Any, Frame], Any]) -> None:
        self._model, self._frame, self._answer = model, frame, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = args[0] if args else kwargs.get("input_ids", kwargs.get("sequences"))
        if asked is self._frame.sequences:
            return self._answer(self._model, self._frame)
        return self._model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def train_whole_answers(original: Callable[..., Any], self: Any, experience: Any) -> Any:
    """One PPO step of G1 or G2 in the rollout's layout; per-token values get per-token returns."""
    frame = _frame_of(experience)
    views: Dict[str, Any] = {"critic": _Seen(self.critic, frame, _value_answer(experience))}
    if experience.values.dim() == 2:
        views["critic_loss_fn"] = _loss_of_tokens(self.critic_loss_fn, experience, frame)
    with _in_the_rollouts_layout(self, experience, frame, **views):
        return original(self, experience)


def train_tokens(original: Callable[..., Any], self: Any, experience: Any) -> Any:
    """One PPO step of G3 or G4 in the rollout's layout."""
    frame = _frame_of(experience)
    loss = self.critic_loss_fn

    def over_actions(values: Tensor, old: Tensor, advantages: Tensor, **_: Any) -> Any:
        return loss(values, old, advantages, action_mask=frame.action_mask)

    views = {
        "critic": _Seen(self.critic, frame, _value_answer(experience)),
        "critic_loss_fn": over_actions,
    }
    with _in_the_rollouts_layout(self, experience, frame, **views):
        return original(self, experience)


def train_group(original: Callable[..., Any], self: Any, experience: Any) -> Any:
    """One GRPO step of G4 in the rollout's layout."""
    with _in_the_rollouts_layout(self, experience, _frame_of(experience)):
        return original(self, experience)


@contextmanager
def _in_the_rollouts_layout(
    trainer: Any, experience: Any, frame: Frame, **views: Any
) -> Iterator[None]:
    """One step of upstream's with these views of its models and losses; then it is told."""
    learnt: List[Tensor] = []
    with attributes(trainer, **_actor_views(trainer, frame, learnt), **views):
        yield
    for log_probs in learnt:
        announce("policy_step", trainer=trainer, experience=experience, log_probs=log_probs)


def _frame_of(experience: Any) -> Frame:
    from coati_ext.rollout import Frame

    actions = tensors.real_actions(experience.action_log_probs, experience.action_mask)
    return Frame.of(experience.sequences, experience.attention_mask, actions)


def _actor_views(trainer: Any, frame: Frame, learnt: List[Tensor]) -> Dict[str, Any]:
    loss = trainer.actor_loss_fn

    def answer(model: Any, frame: Frame) -> Any:
        log_probs = choice("action_log_probs")(model, frame)
        return log_probs if accepts(model, "num_actions") else {"logits": log_probs}

    # Always masked, even with apply_loss_mask off: the masked columns are padding.
    def weighed(log_probs: Tensor, old: Tensor, advantages: Tensor, **_: Any) -> Any:
        learnt.append(log_probs.detach())
        scaled = choice("scale_advantages")(advantages.expand_as(old), frame.action_mask)
        return loss(log_probs, old, scaled, action_mask=frame.action_mask)

    return {"actor": _Seen(trainer.actor, frame, answer), "actor_loss_fn": weighed}


def _value_answer(experience: Any) -> Callable[[Any, Frame], Tensor]:
    def answer(model: Any, frame: Frame) -> Tensor:
        values = state_values(model, frame)
        return values[:, 0] if experience.values.dim() == 1 else values

    return answer


def _loss_of_tokens(loss: Any, experience: Any, frame: Frame) -> Callable[..., Tensor]:
    """The value loss of G1 and G2 over the real actions, with per-token returns as targets."""
    real = frame.action_mask
    returns = experience.advantages + experience.values
    share = real.numel() / real.sum().clamp(min=1)  # upstream averages over all columns

    def loss_of_tokens(values: Tensor, old: Tensor, *_: Any, **__: Any) -> Tensor:
        masked = (item.masked_fill(~real, 0) for item in (values, old, returns))
        total: Tensor = loss(*masked) * share
        return total

    return loss_of_tokens
