from __future__ import annotations

import io
import json
from typing import Any

import torch.distributed as dist


def is_rank_0() -> bool:
    return dist.get_rank() == 0 if dist.is_initialized() else True


def jload(f: Any, mode: str = "r") -> Any:
    """Read JSON from a path or an open file, which is closed afterwards."""
    with f if isinstance(f, io.IOBase) else open(f, mode=mode) as stream:
        return json.load(stream)
