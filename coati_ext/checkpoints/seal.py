"""Seals: the size and the hash of each file of weights, by which a stamp file knows its own.

The hash is the SHA-256 of the SHA-256s of the file's blocks of 8 MiB, so that several threads can
read one file: it takes about as long as reading it. Release 0.3.0 sampled 64 blocks instead; its
seals can still be compared.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Sequence

_WEIGHTS = (".bin", ".pt", ".pth", ".safetensors", ".index.json")
_BLOCK = 1 << 23
_THREADS = 8
_SLOW = 2 << 30
"""Bytes from which on a progress bar is shown."""
_SAMPLE = 1 << 16
_SAMPLES = 64
_WHOLE = re.compile(r"(\d{1,20})-sha256:[0-9a-f]{64}")
_SAMPLED = re.compile(r"(\d{1,20})-[0-9a-f]{16}")


def weights_of(checkpoint: Path) -> List[Path]:
    """The files of weights of a checkpoint: itself, or those in its folder, sorted."""
    if checkpoint.is_dir():
        files = (file for file in checkpoint.iterdir() if file.name.endswith(_WEIGHTS))
        return sorted(file for file in files if file.is_file())
    return [checkpoint] if checkpoint.is_file() else []


def seals_of(files: Sequence[Path]) -> Dict[str, str]:
    """The seal of each file, by name."""
    sizes = {file: file.stat().st_size for file in files}
    result = {}
    with _progress(sum(sizes.values())) as advance, ThreadPoolExecutor(_threads()) as pool:
        for file, size in sizes.items():
            blocks = pool.map(partial(_block, file, advance), range(0, size, _BLOCK))
            whole = hashlib.sha256(b"".join(blocks)).hexdigest()
            result[file.name] = f"{size}-sha256:{whole}"
    return result


def known(seals: Mapping[str, str]) -> bool:
    """Whether all of these are seals, of one release."""
    return any(all(map(kind.fullmatch, seals.values())) for kind in (_WHOLE, _SAMPLED))


def sampled(seals: Mapping[str, str]) -> bool:
    """Whether these are seals of 0.3.0, which leave most of a big file out."""
    return bool(seals) and all(map(_SAMPLED.fullmatch, seals.values()))


def fit(seals: Mapping[str, str], files: Sequence[Path]) -> bool:
    """Whether files are those that were sealed. Sizes are compared before anything is read."""
    sizes = {file.name: str(file.stat().st_size) for file in files}
    if sizes != {name: seal.partition("-")[0] for name, seal in seals.items()}:
        return False
    if sampled(seals):
        return {file.name: _sampled_seal(file) for file in files} == seals
    return seals_of(files) == seals


def _block(file: Path, advance: Callable[[int], None], start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        block = stream.read(_BLOCK)
    advance(len(block))
    return hashlib.sha256(block).digest()


def _threads() -> int:
    """This rank's share of the machine: every rank of a job reads the weights that it loads."""
    here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_THREADS, (cores or 1) // here))


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    """A bar on the error stream of rank 0, for what takes a while."""
    if size < _SLOW or not _is_first():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("checking the weights", total=size)
        yield partial(bar.advance, task)


def _is_first() -> bool:
    from coati_ext.rollout import ranks

    return ranks.is_first()


def _sampled_seal(file: Path) -> str:
    """The seal of 0.3.0: the hash of 64 blocks from all over the file."""
    size = file.stat().st_size
    last = max(0, size - _SAMPLE)
    starts = sorted({last * part // (_SAMPLES - 1) for part in range(_SAMPLES)})
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(_SAMPLE))
    return f"{size}-{digest.hexdigest()[:16]}"
