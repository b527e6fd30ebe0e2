"""Experience buffers for rows of different widths; batches are padded to one width."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Callable, Sequence

if TYPE_CHECKING:
    from torch import Tensor


def stack_experience(items: Sequence[Any]) -> Any:
    """Stack rows from rollouts of different widths into one Experience.

    Prompts are padded on the left and answers on the right, so that all answers start in the same
    column.
    """
    import torch
    from coati.experience_maker.base import Experience
    from torch.nn.functional import pad

    answers = [item.action_log_probs.size(0) for item in items]
    prompts = [item.sequences.size(0) - actions for item, actions in zip(items, answers)]
    sides = [
        (max(prompts) - prompt, max(answers) - actions) for prompt, actions in zip(prompts, answers)
    ]

    def stacked(name: str) -> Any:
        columns = [getattr(item, name) for item in items]
        if any(column is None for column in columns):
            return None
        if name == "sequences":
            columns = [_padded(item, *side) for item, side in zip(items, sides)]
        elif name == "attention_mask":
            columns = [pad(column, side) for column, side in zip(columns, sides)]
        elif all(column.shape == (actions,) for column, actions in zip(columns, answers)):
            columns = [pad(column, (0, right)) for column, (_, right) in zip(columns, sides)]
        return torch.stack(columns)

    return Experience(**{field.name: stacked(field.name) for field in fields(Experience)})


def _padded(item: Any, left: int, right: int) -> Tensor:
    """A row's tokens, padded further with the pad token that it contains; without ``.item()``."""
    import torch

    tokens: Tensor = item.sequences
    if item.attention_mask is None:
        return torch.nn.functional.pad(tokens, (left, right))
    first_pad = item.attention_mask.long().argmin(dim=0, keepdim=True)
    fill = tokens.gather(0, first_pad)
    return torch.cat([fill.expand(left), tokens, fill.expand(right)])


def make_buffer(
    self: Any, sample_batch_size: int, limit: int = 0, cpu_offload: bool = True
) -> None:
    """Initialise an empty buffer whose batches go to the current GPU, or to the CPU."""
    from coati.experience_buffer import ExperienceBuffer

    _fill_buffer(ExperienceBuffer, self, sample_batch_size, limit, cpu_offload)


def make_replay_buffer(
    self: Any, sample_batch_size: int, limit: int = 0, cpu_offload: bool = True
) -> None:
    """As :func:`make_buffer`, for the buffer's class before v0.3.2."""
    from coati.replay_buffer import ReplayBuffer

    _fill_buffer(ReplayBuffer, self, sample_batch_size, limit, cpu_offload)


def _fill_buffer(base: Any, self: Any, rows: int, limit: int, cpu_offload: bool) -> None:
    base.__init__(self, rows, limit)
    self.cpu_offload = cpu_offload
    self.target_device = _device()
    self.items = []
    self.rng_sequence, self.ptr = [], 0


def over_own_rows(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Upstream's loader of a buffer, over all rows of this rank, not over a share of them.

    Each rank makes experience of prompts of its own, which no other rank has. All ranks take as
    many steps as the rank with the fewest rows, so that none waits for another. A rank with more
    leaves some out, different ones in each epoch.
    """
    from torch.utils.data import DataLoader, RandomSampler

    from coati_ext.rollout.ranks import smallest

    loader = original(*args, **kwargs)
    rows = loader.dataset
    count = smallest(len(rows), _device())
    return DataLoader(
        rows,
        batch_size=loader.batch_size,
        sampler=RandomSampler(rows, num_samples=count) if count else [],
        drop_last=loader.drop_last,
        pin_memory=loader.pin_memory,
        collate_fn=loader.collate_fn,
    )


def _device() -> Any:
    """The current GPU, or the CPU."""
    import torch

    on_cuda = torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
