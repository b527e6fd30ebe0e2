"""Real processes that cost a fork: one server in each test process has imported what is slow.

Importing torch, transformers and ColossalAI takes seconds, and a process of a test needs it as it
is: so one server imports them once, and every process is forked from that. A process is a real one
for all that, with its own pid, its own coati and its own coati-ext, of which the server has
imported nothing. What is about the start of an interpreter itself has to have a fresh one
(``interpreters``).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import types
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence
from unittest import mock

import torch
import torch.distributed as dist

LIMIT = 150  # seconds, which nothing takes but on a busy machine
FAMILIES = ("bloom", "gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2")
SLOW = [
    *["numpy", "torch", "torch._dynamo", "torch.distributed", "transformers"],
    # Of transformers what the tiny models are made of, which it loads when it is asked for.
    *[f"transformers.models.{name}.modeling_{name}" for name in FAMILIES],
    *["transformers.generation.utils", "colossalai.booster.plugin"],
    *["hypothesis", "pluggy", "pytest", "rich.console", "wrapt"],
]


def server() -> Any:
    """The multiprocessing context of the server, which begins with the first process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in SLOW if find_spec(name.split(".")[0])])
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("COATI_EXT")]:
            del os.environ[name]
        forkserver.ensure_running()
    return context


# --- ranks of a job ----------------------------------------------------------------------------


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> List[Any]:
    """What ``work(rank, *arguments)`` returned in each of two processes, joined by gloo."""
    return on_ranks(2, "gloo", work, folder, *arguments)


def on_ranks(
    count: int, backend: str, work: Callable[..., Any], folder: Path, *arguments: Any
) -> List[Any]:
    """What ``work(rank, *arguments)`` returned in each of some processes.

    A hang is a failure, after a while.
    """
    # CUDA can be used in no process that is forked from one that has looked for devices.
    context = server() if backend == "gloo" else multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_rank,
            args=(rank, count, backend, dict(os.environ), work, str(folder), arguments),
        )
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
    rank: int,
    count: int,
    backend: str,
    environment: Dict[str, str],
    work: Callable[..., Any],
    folder: str,
    arguments: Any,
) -> None:
    os.environ.clear()  # of the server, at its start
    os.environ.update(environment)
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


# --- programs ----------------------------------------------------------------------------------


def run_warm(
    arguments: Sequence[str], environment: Dict[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` in a forked process: ``-c TEXT``, ``-m MODULE`` or a file, each
    with arguments of its own. Nothing of the start of an interpreter but its ``PYTHONPATH`` counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = server().Process(
            target=_program, args=(list(arguments), environment, str(cwd), folder)
        )
        child.start()
        child.join(LIMIT)
        hung = child.is_alive()
        if hung:
            child.kill()
            child.join()
        written = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    assert not hung, "\n".join([f"{arguments} goes on and on", *written])
    return subprocess.CompletedProcess([sys.executable, *arguments], child.exitcode, *written)


def run(
    command: Sequence[str], *, env: Dict[str, str], cwd: Optional[str] = None, **_: Any
) -> subprocess.CompletedProcess[str]:
    """For ``subprocess.run`` of a Python, whose output is captured as text."""
    assert command[0] == sys.executable
    return run_warm(command[1:], env, Path(cwd or os.getcwd()))


def _program(arguments: List[str], environment: Dict[str, str], cwd: str, folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        with open(os.path.join(folder, name), "wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    ours = tuple({sys.prefix, sys.base_prefix})
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, given), *(path for path in sys.path if path.startswith(ours))]
    code = 1
    try:
        with contextlib.suppress(KeyError):
            del sys.modules["__mp_main__"]
        _main(*arguments)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        elif not end.code or isinstance(end.code, int):
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main(what: str, *arguments: str) -> None:
    if what == "-c":
        text, *arguments = arguments
        sys.argv = ["-c", *arguments]
        sys.path.insert(0, "")
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(text, "<string>", "exec"), vars(module))
    elif what == "-m":
        name, *arguments = arguments
        sys.argv = [name, *arguments]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *arguments]
        sys.path.insert(0, os.path.dirname(os.path.abspath(what)))
        runpy.run_path(what, run_name="__main__")
