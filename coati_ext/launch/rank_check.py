"""Ranks verify at ``init_process_group`` that their patches and settings are identical.

They exchange the digests of their plans through the store of the process group. A collective would
hang if a rank runs without coati-ext. Every key is deleted by its reader, so that nothing piles up
and the next comparison, perhaps in another process group with the same store, uses the same keys.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import time
import warnings
import weakref
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional, Tuple

from coati_ext.errors import RankError
from coati_ext.patching.apply import Write

_agreed: Optional[Tuple[Any, str]] = None
"""The process group (a weak reference) whose ranks have agreed, and their plan."""
_SLACK = 10.0  # seconds; the other ranks wait this much longer for rank 0's verdict
HOME = "torch.distributed"
_NAME = "init_process_group"
_PREFIX = "coati_ext"


def writes(plan: Callable[[], str], limit: float) -> List[Write]:
    """The writes that make each ``init_process_group`` end with :func:`compare`."""
    original = getattr(sys.modules[HOME], _NAME, None)
    if original is None:  # a torch built without torch.distributed
        return []

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        compare(plan(), limit)
        return result

    return [
        Write(module, _NAME, original, init_process_group, f"{name}:{_NAME}")
        for name, module in sorted(sys.modules.items())
        if name.startswith(HOME) and vars(module).get(_NAME) is original
    ]


def compare(plan: str, limit: float) -> None:
    """Raise unless all ranks have the same plan. A single process returns at once.

    So does a rank whose plan is the one that the ranks of this process group have agreed on: it
    may have switched it off and on again, without the others.

    Args:
        plan: a text that has to be equal on all ranks.
        limit: seconds to wait for the other ranks.

    Raises:
        RankError: a rank has another plan, or did not report in time; the message names it.
    """
    global _agreed
    import torch.distributed as dist

    from coati_ext.rollout import ranks

    if not ranks.several():
        return
    try:
        group, store = _group()
    except Exception as error:
        warnings.warn(
            f"coati-ext cannot compare the ranks' plans: torch gives no store ({error})",
            stacklevel=2,
        )
        return
    before = _agreed[1] if _agreed is not None and _agreed[0]() is group else None
    if before == plan:
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    store.set(str(rank), f"{socket.gethostname()} {plan}")
    if rank:
        verdict = _take(store, f"verdict for {rank}", limit + _SLACK)
        if verdict is None:
            _delete(store, str(rank))
            verdict = _absent([0], limit)
        elif verdict:
            store.set(f"read by {rank}", "yes")
    else:
        end = time.monotonic() + limit
        reports = {
            other: _take(store, str(other), max(0.01, end - time.monotonic()))
            for other in range(size)
        }
        verdict = _verdict(reports, limit)
        for other in range(1, size):
            store.set(f"verdict for {other}", verdict)
        if verdict:  # rank 0 may host the store, so it stops after the others have read the error
            for other in range(1, size):
                if reports[other] is not None:
                    _take(store, f"read by {other}", 1.0)
    if verdict and before is not None:
        verdict += f". The ranks had agreed on plan {before}, and this rank has changed to {plan}"
    if verdict:
        raise RankError(verdict)
    _agreed = weakref.ref(group), plan


def _verdict(reports: Dict[int, Any], limit: float) -> str:
    """The error message, or an empty string if all ranks have the same plan."""
    absent = [rank for rank, report in reports.items() if report is None]
    if absent:
        return _absent(absent, limit)
    plans: Dict[str, List[str]] = {}
    for rank, report in reports.items():
        host, plan = report.split(" ", 1)
        plans.setdefault(plan, []).append(f"{rank} ({host})")
    if len(plans) == 1:
        return ""
    usual, *others = sorted(plans, key=lambda plan: -len(plans[plan]))
    told = "; ".join(f"rank {', '.join(plans[plan])} has plan {plan}" for plan in others)
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


def _take(store: Any, key: str, seconds: float) -> Any:
    """The text under a key, which is deleted, or ``None`` after the timeout."""
    try:
        store.wait([key], timedelta(seconds=seconds))
    except RuntimeError:
        return None
    text = store.get(key).decode()
    _delete(store, key)
    return text


def _delete(store: Any, key: str) -> None:
    """Delete a key where the store can. Where it cannot, the next comparison overwrites it."""
    with contextlib.suppress(RuntimeError, NotImplementedError):
        store.delete_key(key)


def _group() -> Tuple[Any, Any]:
    """The default process group and its store, for which torch has no public API."""
    from torch.distributed import distributed_c10d as c10d

    store = c10d.PrefixStore(_PREFIX, c10d._get_default_store())
    return c10d._get_default_group(), store
