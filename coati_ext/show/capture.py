"""A plugin: the first Experience of a job, in a file that ``coati-ext show FILE`` reads.

    COATI_EXT=1 COATI_EXT_SET=plugins=coati_ext.show.capture python train_ppo.py ...

Rank 0 writes ids, masks and the texts of its tokens; nothing of the model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Set

from coati_ext import hookimpl, option, options

_written: Set[str] = set()


@dataclass(frozen=True)
class Options:
    """``[capture]``."""

    file: str = option("coati_ext_batch.pt", "where the first batch of the job is written")


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[capture]``."""
    register("capture", Options)


@hookimpl
def experience_made(experience: Any, maker: Any) -> None:
    """Write the batch, if it is the first of this process and the process is rank 0."""
    file = options("capture").file
    if file in _written or os.environ.get("RANK", "0") != "0":
        return
    _written.add(file)
    import torch

    from coati_ext.checkpoints.atomic import put

    names = ("sequences", "attention_mask", "action_mask")
    held: Dict[str, Any] = {
        name: getattr(experience, name).detach().cpu().clone() for name in names
    }
    # Before v0.3.3 the maker has no tokenizer: `show` is told pad and EOS then.
    words = getattr(maker, "tokenizer", None)
    if words is not None:
        ids = torch.unique(held["sequences"]).tolist()
        held.update(
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
            texts=dict(zip(ids, map(str, words.convert_ids_to_tokens(ids)))),
        )
    put(Path(file), lambda new: torch.save(held, str(new)))
