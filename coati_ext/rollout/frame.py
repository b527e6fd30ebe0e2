"""The frame: one left-padded batch of prompts and answers, shared by all models of PPO.

Letters: B rows, A action columns, S sequence columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from coati_ext import tensors
from coati_ext.rollout import host


@dataclass(frozen=True)
class Frame:
    """A batch whose prompts are left-padded, so that all answers start in the same column."""

    sequences: Tensor
    """(B, S) int64."""
    attention_mask: Tensor
    """(B, S) bool, true for real tokens."""
    action_mask: Tensor
    """(B, A) bool, true for real actions; action column j is sequence column S - A + j."""
    position_ids: Tensor
    """(B, S) int64, counting only the real tokens of each row."""

    @classmethod
    def of(cls, sequences: Tensor, attention_mask: Optional[Tensor], action_mask: Tensor) -> Frame:
        """Build a frame from rows without pads between real tokens; compute the position ids.

        Raises:
            ValueError: the shapes of the masks do not match the sequences.
        """
        mask = tensors.token_mask(sequences, attention_mask)
        rows, width = action_mask.shape
        if rows != sequences.size(0) or width >= sequences.size(1):
            raise ValueError(
                f"action_mask has shape {tuple(action_mask.shape)} but sequences has shape "
                f"{tuple(sequences.shape)}: expected a column for each token after the prompt"
            )
        frame = cls(sequences, mask, action_mask != 0, tensors.position_ids(mask))
        host.learn(frame.sequences, frame.attention_mask, frame.action_mask)
        return frame

    @property
    def num_actions(self) -> int:
        """A."""
        return self.action_mask.size(1)

    def rows(self, rows: slice) -> Frame:
        """The frame of a slice of the rows."""
        wholes = (self.sequences, self.attention_mask, self.action_mask)
        sequences, attention_mask, action_mask = parts = [item[rows] for item in wholes]
        host.remember_rows(parts, wholes, rows)
        return Frame(sequences, attention_mask, action_mask, self.position_ids[rows])
