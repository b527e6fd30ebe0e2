"""Ranks verify at ``init_process_group`` that their patches and settings are identical.

They exchange the digests of their plans through the store of the process group. A collective would
hang if a rank runs without coati-ext.
"""

from __future__ import annotations

import functools
import socket
import sys
import time
import warnings
from datetime import timedelta
from itertools import count
from typing import Any, Dict, List

from coati_ext.errors import RankError
from coati_ext.patching.apply import Write

_rounds = count()
_SLACK = 10.0  # seconds; the other ranks wait this much longer for rank 0's verdict
HOME = "torch.distributed"
_NAME = "init_process_group"


def writes(digest: str, limit: float) -> List[Write]:
    """The writes that make each ``init_process_group`` end with :func:`compare`."""
    original = getattr(sys.modules[HOME], _NAME, None)
    if original is None:  # a torch built without torch.distributed
        return []

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        compare(digest, limit)
        return result

    return [
        Write(module, _NAME, original, init_process_group, f"{name}:{_NAME}")
        for name, module in sorted(sys.modules.items())
        if name.startswith(HOME) and vars(module).get(_NAME) is original
    ]


def compare(digest: str, limit: float) -> None:
    """Raise unless all ranks have the same plan. A single process returns at once.

    Args:
        digest: of this rank's plan.
        limit: seconds to wait for the other ranks.

    Raises:
        RankError: a rank has another plan, or did not report in time; the message names it.
    """
    import torch.distributed as dist

    from coati_ext.rollout import ranks

    if not ranks.several():
        return
    try:
        store = _store(f"coati_ext/{next(_rounds)}")
    except Exception as error:
        warnings.warn(
            f"coati-ext cannot compare the ranks' plans: torch gives no store ({error})",
            stacklevel=2,
        )
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    store.set(str(rank), f"{digest} {socket.gethostname()}")
    if rank:
        verdict = _read(store, "verdict", limit + _SLACK)
        if verdict is None:
            verdict = _absent([0], limit)
        else:
            store.set(f"read by {rank}", "yes")
    else:
        end = time.monotonic() + limit
        reports = {
            other: _read(store, str(other), max(0.01, end - time.monotonic()))
            for other in range(size)
        }
        verdict = _verdict(reports, limit)
        store.set("verdict", verdict)
        if verdict:  # rank 0 may host the store, so it stops after the others have read the error
            for other in range(1, size):
                if reports[other] is not None:
                    _read(store, f"read by {other}", 1.0)
    if verdict:
        raise RankError(verdict)


def _verdict(reports: Dict[int, Any], limit: float) -> str:
    """The error message, or an empty string if all ranks have the same plan."""
    absent = [rank for rank, report in reports.items() if report is None]
    if absent:
        return _absent(absent, limit)
    plans: Dict[str, List[str]] = {}
    for rank, report in reports.items():
        digest, host = report.split(" ", 1)
        plans.setdefault(digest, []).append(f"{rank} ({host})")
    if len(plans) == 1:
        return ""
    usual, *others = sorted(plans, key=lambda digest: -len(plans[digest]))
    told = "; ".join(f"rank {', '.join(plans[digest])} has plan {digest}" for digest in others)
    return (
        f"the ranks of this job do not train alike: {told}, the others {usual}. Compare `coati-ext "
        "plan` there and here: coati, coati-ext, settings or plugins differ. To hand one "
        "configuration to all, start the job with coati-ext run"
    )


def _absent(ranks: List[int], limit: float) -> str:
    names = ", ".join(map(str, ranks))
    return (
        f"rank {names} of this job never reported a plan within {limit:g} s, so its coati is "
        "probably unpatched: is coati-ext installed there, is COATI_EXT set, and does it import "
        "coati? (rank_check = SECONDS allows more time, rank_check = 0 skips the comparison)"
    )


def _read(store: Any, key: str, seconds: float) -> Any:
    """The text under a key, or ``None`` after the timeout."""
    try:
        store.wait([key], timedelta(seconds=seconds))
    except RuntimeError:
        return None
    return store.get(key).decode()


def _store(prefix: str) -> Any:
    """The store of the default process group, for which torch has no public API."""
    from torch.distributed import distributed_c10d as c10d

    return c10d.PrefixStore(prefix, c10d._get_default_store())
