"""Real processes of one job. A hang is a failure, after a while."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, List

import torch
import torch.distributed as dist

LIMIT = 150  # seconds, most of which a busy machine spends on imports


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> List[Any]:
    """What ``work(rank, *arguments)`` returned in each of two processes, joined by gloo."""
    return on_ranks(2, "gloo", work, folder, *arguments)


def on_ranks(
    count: int, backend: str, work: Callable[..., Any], folder: Path, *arguments: Any
) -> List[Any]:
    """What ``work(rank, *arguments)`` returned in each of some processes."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(rank, count, backend, work, str(folder), arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in hung:
        processes[rank].kill()
        processes[rank].join()
    failures = [path.read_text() for path in sorted(folder.glob("failure*"))]
    assert not hung, "\n".join([f"ranks {hung} wait for each other", *failures])
    assert not failures, "\n".join(failures)
    ended = [process.exitcode for process in processes]
    assert not any(ended), f"the ranks ended with exit codes {ended}"
    return [json.loads((folder / f"result{rank}").read_text()) for rank in range(count)]


def _rank(
    rank: int, count: int, backend: str, work: Callable[..., Any], folder: str, arguments: Any
) -> None:
    torch.set_num_threads(1)
    try:
        meeting = (Path(folder) / "group").as_uri()
        dist.init_process_group(
            backend,
            init_method=meeting,
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=LIMIT / 2),
        )
        result = work(rank, *arguments)
        dist.barrier()
        (Path(folder) / f"result{rank}").write_text(json.dumps(result))
        # Threads of gloo now and then abort the end of an interpreter, whatever the result.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        (Path(folder) / f"failure{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise
